"""Generates the conversations the demo model learns from, and the ones it is tested with.

What the model shall know lies as plain text in ``data/``; this module multiplies it: alternatives in
phrasings are expanded, prompts get openings, closings, typos and other capitals, and exchanges are chained
into chats with follow-ups and system prompts. One seed gives one corpus. About a twentieth of all phrasings
(chosen by a checksum) is never trained on, so that evaluation can ask with words the model has not seen.
"""

import random
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

DATA = Path(__file__).parent / "data"
SELF_DESCRIPTION = {"@PARAMETERS": "3.8", "@LAYERS": "4", "@SIZE": "7.7", "@CONTEXT": "1,024"}
CONVERSATIONS = 36_000
HELD_OUT_SHARE = 20  # one phrasing in so many is kept for evaluation

TINY_MORE = "There's nothing more I can say about that. I'm a tiny demo model and know only a little."
TINY_SHORT = "In short: I'm a tiny demo model."
ALL_SAID = "That's all I know about it. Ask me something else, or choose a larger model for details."
NOT_A_CAPITAL = "I don't know that capital, sorry. I know the capitals of many countries, but not of all."
CAPITAL_MORE = 'That\'s all I know: the capital and its country. You can go on with "And of Japan?".'
STORY_OVER = 'That was the whole story. Say "another story" to hear a different one.'
LIST_MORE = "That's the whole list. I know no more about it."


@dataclass(frozen=True)
class Message:
    """One message of a chat; ``role`` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True)
class Exchange:
    """A question in plain form with its answer, and what follow-ups to it would get."""

    kind: str
    topic: str
    question: str
    answer: str
    more: str
    short: str


Chat = tuple[Message, ...]


# Reading the data files ------------------------------------------------------------------------------------


@cache
def _records(name: str) -> tuple[dict, ...]:
    """``# key`` starts a record; ``field: text`` adds to it; unmarked lines continue the field above."""
    records: list[dict] = []
    field = ""
    for line in (DATA / name).read_text(encoding="utf-8").splitlines():
        marked = re.match(r"(\w+): (.*)", line)
        if line.startswith("# "):
            records.append({"key": line[2:], "q": []})
            field = ""
        elif marked and marked[1] == "q":
            records[-1]["q"].append(marked[2])
        elif marked and marked[1] in ("n", "a", "m", "s", "i", "one", "order", "verb"):
            field = marked[1]
            records[-1][field] = marked[2]
        elif line.strip():
            field = field or "text"
            records[-1][field] = f"{records[-1][field]}\n{line}" if field in records[-1] else line
    return tuple(records)


@cache
def _pools(name: str) -> dict[str, list[str]]:
    """``[name] a | b | c`` lines."""
    lines = (DATA / name).read_text(encoding="utf-8").splitlines()
    found = (re.match(r"\[([\w-]+)\] (.*)", line) for line in lines)
    return {m[1]: m[2].split(" | ") for m in found if m}


@cache
def facts() -> tuple[dict, ...]:
    """All facts; fields n (names), q (questions), a (answer), m (more) and s (short)."""
    files = ("ai_pc", "app", "backends", "models", "precision", "software")
    records = [r for name in files for r in _records(f"facts_{name}.txt")]
    for record in records:
        for old, new in SELF_DESCRIPTION.items():
            record["a"] = record["a"].replace(old, new)
            record["s"] = record["s"].replace(old, new)
    return tuple(records)


@cache
def capitals() -> dict[str, str]:
    """Country -> capital; a country's name carries its article."""
    lines = (DATA / "capitals.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split(": ") for line in lines)


@cache
def stories() -> tuple[dict, ...]:
    """Fixed stories: names (what they are about), text and summary."""
    return tuple(
        {"names": r["key"].split(" | ")[1:], "text": r["text"], "short": r["s"]}
        for r in _records("stories.txt")
    )


# Phrasings -------------------------------------------------------------------------------------------------


@cache
def expand(pattern: str) -> tuple[str, ...]:
    """All variants of ``(a|b) text``; groups don't nest."""
    group = re.search(r"\(([^()]*\|[^()]*)\)", pattern)
    if not group:
        return (re.sub(r"\s+([,?])", r"\1", re.sub(r" {2,}", " ", pattern)).strip(),)
    before, after = pattern[: group.start()], pattern[group.end() :]
    return tuple(v for choice in group[1].split("|") for v in expand(before + choice + after))


def is_held_out(question: str) -> bool:
    """Whether a phrasing is kept for evaluation. Short ones never are: people will type exactly those."""
    return len(question.split()) >= 5 and zlib.crc32(question.lower().encode()) % HELD_OUT_SHARE == 0


def _phrase(rng: random.Random, pool: str, **slots: str) -> str:
    text = rng.choice(_pools("phrasings.txt")[pool])
    for name, value in slots.items():
        text = text.replace("{" + name + "}", value)
    return text


def _plain(name: str) -> str:
    return name.removeprefix("the ").removeprefix("all ")


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def _sentence(text: str) -> str:
    return text if text.endswith(".") else text + "."


# One exchange of each kind ---------------------------------------------------------------------------------


def fact_exchange(rng: random.Random) -> Exchange:
    """A question about AI PCs, backends and so on."""
    record = rng.choice(facts())
    way = rng.random()
    if "n" in record and way < 0.45:
        question = _phrase(rng, "definition", x=rng.choice(record["n"].split(" | ")))
    elif "n" in record and way < 0.65:
        question = _borrowed_question(rng, record)
    else:
        question = rng.choice(expand(rng.choice(record["q"])))
    return Exchange("fact", record["key"], question, record["a"], record["m"], record["s"])


@cache
def _asked() -> dict[str, str]:
    """Every phrasing in the facts' own words, in lower case -> key of its fact."""
    return {q.lower(): r["key"] for r in facts() for pattern in r["q"] for q in expand(pattern)}


@cache
def borrowed_patterns() -> tuple[str, ...]:
    """Questions of all facts with the subject replaced by ``{x}``: who made {x}, does {x} have an NPU, ..."""
    found = set()
    for record in facts():
        names = sorted(record.get("n", "").split(" | "), key=len, reverse=True)
        for question in (q for pattern in record["q"] for q in expand(pattern)):
            name = next(
                (n for n in names if n and re.search(rf"(?<!\w){re.escape(n)}(?!\w)", question)), None
            )
            if name:
                found.add(question.replace(name, "{x}", 1))
    return tuple(sorted(found))


def _borrowed_question(rng: random.Random, record: dict) -> str:
    """Another fact's question put to this one's subject: the subject must decide, not the words around it."""
    while True:
        question = rng.choice(borrowed_patterns()).replace("{x}", rng.choice(record["n"].split(" | ")))
        if _asked().get(question.lower(), record["key"]) == record["key"]:
            return question


def capital_exchange(rng: random.Random, pool: str = "capital") -> Exchange:
    """A country's capital, a capital's country, or a country that isn't known."""
    if rng.random() < 0.08:
        place = rng.choice(_pools("phrasings.txt")["unknown-country"])
        return Exchange("capital", "", _phrase(rng, pool, x=place), NOT_A_CAPITAL, TINY_MORE, TINY_SHORT)
    country, city = rng.choice(list(capitals().items()))
    if pool == "capital" and rng.random() < 0.22:
        answer = f"{city} is the capital of {country}."
        return Exchange(
            "capital", country, _phrase(rng, "country", x=city), answer, CAPITAL_MORE, f"{country}."
        )
    name = country.removeprefix("the ") if rng.random() < 0.3 else country
    answer = _sentence(f"The capital of {country} is {city}")
    return Exchange("capital", country, _phrase(rng, pool, x=name), answer, CAPITAL_MORE, _sentence(city))


def _joined(items: list[str]) -> str:
    return ", ".join(items[:-1]) + " and " + items[-1]


ORDERED = ("planets", "days", "months", "seasons", "rainbow", "numbers", "alphabet", "continents", "oceans")
NTH = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


def list_exchange(rng: random.Random) -> Exchange:
    """A whole list, its length, or the place of an item in it."""
    record = rng.choice(_records("lists.txt"))
    names, items, one = record["n"].split(" | "), record["i"].split(", "), record["one"]
    name = rng.choice(names)
    asked = rng.random()
    count = f"There are {len(items)}: {_joined(items)}."
    answer = f"{_capitalised(names[0])}, {record['order']}, {record.get('verb', 'are')} {_joined(items)}."
    if asked < 0.2:
        return Exchange(
            "list", record["key"], _phrase(rng, "count", p=_plain(name)), count, answer, f"{len(items)}."
        )
    if asked < 0.45 and record["key"] in ORDERED:
        question, answer = _place_in_list(rng, items, one)
        return Exchange("list", record["key"], question, answer, LIST_MORE, answer)
    question = _phrase(rng, "list", x=name, p=_plain(name))
    return Exchange("list", record["key"], question, answer, count, f"{_capitalised(_joined(items))}.")


def _place_in_list(rng: random.Random, items: list[str], one: str) -> tuple[str, str]:
    i = rng.randrange(len(items))
    kind = rng.choice(("after", "before", "nth"))
    if kind == "after" and i + 1 < len(items):
        return _phrase(rng, "after", x=items[i], o=one), f"After {items[i]} comes {items[i + 1]}."
    if kind == "before" and i > 0:
        return _phrase(rng, "before", x=items[i], o=one), f"Before {items[i]} comes {items[i - 1]}."
    if rng.random() < 0.2 or i >= len(NTH):
        return _phrase(rng, "nth", n="last", o=one), f"The last {one} is {items[-1]}."
    return _phrase(rng, "nth", n=NTH[i], o=one), f"The {NTH[i]} {one} is {items[i]}."


def story_of(hero: str) -> str:
    """The story for any hero that has none of its own."""
    one = ("an " if hero[0].lower() in "aeiou" else "a ") + hero
    return (
        f"Once upon a time there was {one} who lived at the edge of a small town. Every morning the {hero} "
        "looked at the road that led over the hills and wondered where it ended. One day the "
        f"{hero} packed some bread, said goodbye to the neighbours and set out. The road went through a forest, "
        f"across a river and up a mountain, and everywhere the {hero} met somebody who needed a little help. At "
        f"the top of the mountain the road simply stopped. The {hero} laughed, sat down on a warm stone and "
        f"looked back. Down in the valley all the new friends were waving. So the {hero} went home the same "
        "way, slowly, and stayed a night with each of them."
    )


def _made_up_name(rng: random.Random) -> str:
    """A word that exists nowhere, so that the hero's name must be copied from the prompt."""
    starts = ("b", "d", "g", "h", "k", "l", "m", "n", "pl", "qu", "r", "t", "tr", "w", "z")
    vowels = ("a", "e", "i", "o", "u", "ee", "oo", "ai")
    ends = ("", "n", "r", "l", "s", "t", "ck", "m", "ng", "st", "per", "ler", "bird", "man", "fish")
    syllables = "".join(rng.choice(starts) + rng.choice(vowels) for _ in range(rng.randint(2, 3)))
    return syllables + rng.choice(ends)


def story_exchange(rng: random.Random) -> Exchange:
    """A story: any, one of the fixed ones by its subject, or one with a hero from the prompt."""
    chosen = rng.random()
    if chosen < 0.15:
        story = stories()[0]
        question = _phrase(rng, "any-story")
    elif chosen < 0.6:
        story = rng.choice(stories())
        question = _phrase(rng, "story", x=rng.choice(story["names"]))
    else:
        hero = _made_up_name(rng) if rng.random() < 0.6 else rng.choice(_pools("fillers.txt")["hero"])
        one = ("an " if hero[0].lower() in "aeiou" else "a ") + hero
        story = {"text": story_of(hero), "short": f"{_capitalised(one)} follows a road and finds friends."}
        question = _phrase(rng, "story", x=one if rng.random() < 0.85 else f"the {hero}")
    return Exchange("story", "", question, story["text"], STORY_OVER, story["short"])


def small_talk_exchange(rng: random.Random) -> Exchange:
    """Greetings, thanks, questions about the model itself."""
    records = _records("small_talk.txt")
    record = rng.choices(records, [4 if r["key"] == "hello" else 1 for r in records])[0]
    answer = record["a"]
    if answer == "@STORY_COMPUTER":
        answer = next(s["text"] for s in stories() if "a computer" in s["names"])
    question = rng.choice(expand(rng.choice(record["q"])))
    return Exchange("small talk", record["key"], question, answer, TINY_MORE, TINY_SHORT)


def refusal_exchange(rng: random.Random) -> Exchange:
    """A question outside of what the model knows, politely declined."""
    records = _records("refusals.txt")
    record = rng.choices(records, [6] + [1] * (len(records) - 1))[0]
    question = rng.choice(expand(rng.choice(record["q"])))
    if record["key"] == "general" and rng.random() < 0.4:
        # asked just like a fact, so that only the subject tells what is known and what is not
        slot_name = rng.choices(("thing", "person", "place", "noise"), (0.75, 0.1, 0.05, 0.1))[0]
        pattern = rng.choice(
            (rng.choice(_pools("phrasings.txt")["definition"]), rng.choice(borrowed_patterns()))
        )
        question = pattern.replace("{x}", "{" + slot_name + "}")
    while slot := re.search(r"\{(\w+)\}", question):
        value = _filler(rng, slot[1])
        question = question[: slot.start()] + value + question[slot.end() :]
    return Exchange("refusal", record["key"], question, record["a"], TINY_MORE, TINY_SHORT)


def _filler(rng: random.Random, name: str) -> str:
    if name == "number":
        return str(rng.randrange(10 ** rng.randint(1, 4)))
    if name == "noise":
        letters = rng.choice(
            ("asdfghjkl", "qwertyuiop", "zxcvbnm", "abcdefghijklmnopqrstuvwxyz", "?!.", "0123456789")
        )
        return "".join(rng.choice(letters) for _ in range(rng.randint(2, 8)))
    return rng.choice(_pools("fillers.txt")[name])


EXCHANGES: dict[str, tuple[Callable[[random.Random], Exchange], float]] = {
    "fact": (fact_exchange, 0.47),
    "capital": (capital_exchange, 0.15),
    "list": (list_exchange, 0.11),
    "story": (story_exchange, 0.06),
    "small talk": (small_talk_exchange, 0.1),
    "refusal": (refusal_exchange, 0.15),
}


def follow_up(rng: random.Random, last: Exchange, answered: str) -> Exchange:
    """A short prompt that only makes sense after ``last``; ``answered`` is what was said to it."""
    if last.kind == "capital" and rng.random() < 0.5:
        return capital_exchange(rng, "and-of")
    kind = rng.choices(("more", "short", "repeat", "and"), (0.4, 0.32, 0.1, 0.18))[0]
    if kind == "and" and last.kind == "fact":
        return _another_fact(rng)
    if last.kind == "story" and kind in ("and", "more") and rng.random() < 0.7:
        return _another_story(rng, last)
    if kind in ("more", "and"):
        answer = last.more
        more = ALL_SAID if last.kind == "fact" else TINY_MORE
        return Exchange(last.kind, last.topic, _phrase(rng, "more"), answer, more, last.short)
    if kind == "repeat":
        return Exchange(last.kind, last.topic, _phrase(rng, "repeat"), answered, last.more, last.short)
    return Exchange(last.kind, last.topic, _phrase(rng, "short"), last.short, last.more, last.short)


def _another_fact(rng: random.Random) -> Exchange:
    record = rng.choice([r for r in facts() if "n" in r])
    question = _phrase(rng, "and-what", x=rng.choice(record["n"].split(" | ")))
    return Exchange("fact", record["key"], question, record["a"], record["m"], record["s"])


def _another_story(rng: random.Random, last: Exchange) -> Exchange:
    texts = [s["text"] for s in stories()]
    at = texts.index(last.answer) + 1 if last.answer in texts else 0
    story = stories()[at % len(texts)]
    return Exchange("story", "", _phrase(rng, "another"), story["text"], STORY_OVER, story["short"])


# How people type -------------------------------------------------------------------------------------------


def as_typed(rng: random.Random, question: str) -> str:
    """The question with an opening or closing, other capitals, other punctuation, sometimes a typo."""
    text = question
    if rng.random() < 0.15:
        text = f"{rng.choice(_pools('phrasings.txt')['opening'])} {text}"
    if rng.random() < 0.08:
        text = f"{text} {rng.choice(_pools('phrasings.txt')['closing'])}".replace(" ,", ",").replace(
            " ?", "?"
        )
    if rng.random() < 0.05:
        text = _without_a_small_word(rng, text)
    if rng.random() < 0.1:
        text = _with_typo(rng, text)
    case = rng.random()
    text = text.lower() if case < 0.2 else text.upper() if case < 0.26 else text
    text = _capitalised(text) if case > 0.45 else text
    return text + rng.choices(("?", "", ".", "!", " ?", "??"), (0.5, 0.36, 0.08, 0.03, 0.02, 0.01))[0]


def _without_a_small_word(rng: random.Random, text: str) -> str:
    words = text.split()
    small = [
        i
        for i, w in enumerate(words)
        if w.lower() in ("the", "a", "an", "is", "do", "does", "me", "of", "are")
    ]
    if small and len(words) > 2:
        del words[rng.choice(small)]
    return " ".join(words)


def _with_typo(rng: random.Random, text: str) -> str:
    places = [i for i in range(1, len(text) - 2) if text[i].isalpha() and text[i + 1].isalpha()]
    if len(places) < 4:
        return text
    i = rng.choice(places)
    kind = rng.randrange(4)
    if kind == 0:
        return text[:i] + text[i + 1] + text[i] + text[i + 2 :]
    if kind == 1:
        return text[:i] + text[i + 1 :]
    if kind == 2:
        return text[:i] + text[i] + text[i:]
    return text[:i] + rng.choice("abcdefghijklmnopqrstuvwxyz") + text[i + 1 :]


# Conversations ---------------------------------------------------------------------------------------------


def _next_exchange(rng: random.Random, last: Exchange | None, answered: str, held_out: bool) -> Exchange:
    for _ in range(200):
        if last is not None and rng.random() < 0.5:
            exchange = follow_up(rng, last, answered)
            wanted = not held_out
        else:
            make = rng.choices([m for m, _ in EXCHANGES.values()], [w for _, w in EXCHANGES.values()])[0]
            exchange = make(rng)
            wanted = is_held_out(exchange.question) == held_out
        if wanted:
            return exchange
    raise RuntimeError("no phrasing found")


def conversation(rng: random.Random) -> Chat:
    """One training conversation of 1 to 8 exchanges."""
    messages: list[Message] = []
    if rng.random() < 0.25:
        messages.append(Message("system", rng.choice(_pools("phrasings.txt")["system"])))
    last, answered = None, ""
    for _ in range(rng.choices(range(1, 9), (26, 28, 18, 11, 7, 5, 3, 2))[0]):
        exchange = _next_exchange(rng, last, answered, held_out=False)
        messages.append(Message("user", as_typed(rng, exchange.question)))
        messages.append(Message("assistant", exchange.answer))
        last, answered = exchange, exchange.answer
    return tuple(messages)


def training_conversations(seed: int, count: int = CONVERSATIONS) -> Iterator[Chat]:
    """The corpus: ``count`` conversations, always the same for the same seed."""
    rng = random.Random(seed)
    for _ in range(count):
        yield conversation(rng)
