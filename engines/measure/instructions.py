"""Twenty instructions whose answers a program can check: does the fast one still do what it is told?"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Instruction:
    """A prompt, and whether a reply obeys it."""

    name: str
    prompt: str
    obeyed: Callable[[str], bool]


def _json(text: str) -> object:
    """The JSON value in a reply, with or without a fence around it; None when there is none."""
    fenced = re.search(r"```(?:json)?\s*(.+?)```", text, re.DOTALL)
    try:
        value: object = json.loads((fenced.group(1) if fenced else text).strip())
    except (ValueError, RecursionError):
        return None
    return value


def _object_with(*names: str) -> Callable[[str], bool]:
    def check(text: str) -> bool:
        value = _json(text)
        return isinstance(value, dict) and set(names) <= set(value)

    return check


def _list_of(count: int) -> Callable[[str], bool]:
    def check(text: str) -> bool:
        value = _json(text)
        return isinstance(value, list) and len(value) == count

    return check


def _lines(count: int, starting: str = "") -> Callable[[str], bool]:
    def check(text: str) -> bool:
        found = [line.strip() for line in text.strip().splitlines() if line.strip()]
        return len(found) == count and all(re.match(starting, line) for line in found)

    return check


def _says(*words: str) -> Callable[[str], bool]:
    return lambda text: all(re.search(rf"\b{word}\b", text, re.IGNORECASE) for word in words)


def _never(word: str) -> Callable[[str], bool]:
    return lambda text: bool(text.strip()) and word.lower() not in text.lower()


def _only(pattern: str) -> Callable[[str], bool]:
    return lambda text: re.fullmatch(pattern, text.strip(), re.IGNORECASE) is not None


def _words(most: int) -> Callable[[str], bool]:
    return lambda text: 0 < len(text.split()) <= most


INSTRUCTIONS = (
    Instruction(
        "json-object",
        'Answer only with a JSON object that has the keys "name" and "age".',
        _object_with("name", "age"),
    ),
    Instruction("json-list", "Answer only with a JSON list of exactly three colours.", _list_of(3)),
    Instruction(
        "json-number",
        'Answer only with this JSON object, completed: {"sum": } where sum is 2 + 3.',
        lambda t: _json(t) == {"sum": 5},
    ),
    Instruction("json-empty", "Answer only with an empty JSON list.", lambda t: _json(t) == []),
    Instruction("three-lines", "Name three fruits, one on each line and nothing else.", _lines(3)),
    Instruction(
        "five-lines",
        "Write the numbers from 1 to 5, one on each line and nothing else.",
        _lines(5, r"\W*[1-5]\W*$"),
    ),
    Instruction("bullets", "Name two animals as a list. Begin each line with a hyphen.", _lines(2, "-")),
    Instruction(
        "numbered",
        "Give three steps to make tea. Number them 1., 2. and 3., one on each line.",
        _lines(3, r"[1-3]\."),
    ),
    Instruction(
        "forbidden-word", "Describe the sea in one sentence without using the word “water”.", _never("water")
    ),
    Instruction("forbidden-letter", "Write one sentence about a dog. Do not use the letter z.", _never("z")),
    Instruction(
        "wanted-word", "Write one sentence about the night that contains the word “moon”.", _says("moon")
    ),
    Instruction(
        "two-words",
        "Write one sentence that contains the words “bread” and “river”.",
        _says("bread", "river"),
    ),
    Instruction("yes-or-no", "Is ice colder than steam? Answer only with yes or no.", _only(r"yes\W*")),
    Instruction("one-word", "What is the capital of France? Answer with one word.", _only(r"paris\W*")),
    Instruction("arithmetic", "What is 7 + 5? Answer only with the number.", _only(r"12\W*")),
    Instruction(
        "upper-case",
        "Write the word hello in capital letters and nothing else.",
        lambda t: re.fullmatch(r"\W*HELLO\W*", t.strip()) is not None,
    ),
    Instruction("repeat", "Repeat exactly this and nothing else: green apple", _only(r"\W*green apple\W*")),
    Instruction(
        "ends-with",
        "Say goodnight in one sentence. End your answer with the word “END”.",
        lambda t: re.search(r"END\W*$", t.strip()) is not None,
    ),
    Instruction("short", "Explain what a window is in at most ten words.", _words(10)),
    Instruction(
        "count-up",
        "Count from 1 to 4 with commas between the numbers and nothing else.",
        _only(r"1,\s*2,\s*3,\s*4\W*"),
    ),
)
