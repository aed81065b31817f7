"""Asks the trained model what it was not trained on, on every backend and precision, and prints the tables.

    python -m engines.demo_model.evaluate                        transformers only, seconds
    python -m engines.demo_model.evaluate --data-dir FOLDER      all backends; converted models go to FOLDER

An answer counts only when it is exactly the expected text (greedy decoding). Questions come in kinds: phrasings
of the corpus that were held out by checksum, ``new paraphrase`` (data/new_paraphrases.txt, written apart from the
corpus), ``new hero`` (stories about heroes that occur nowhere in the corpus) and follow-ups in two turns.
Prompts are encoded once, so every backend gets the same tokens.
"""

import argparse
import random
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.demo_model import WEIGHTS
from engines.demo_model.corpus import (
    DATA,
    EXCHANGES,
    Exchange,
    as_typed,
    facts,
    follow_up,
    is_held_out,
    story_of,
)

SEED = 7
PER_KIND = 60
MAX_NEW_TOKENS = 260
NEW_HEROES = ("walrus", "flamingo", "librarian", "chimney sweep", "hamster", "lizard", "trumpet", "lantern")

BATCH = 32

Prompts = Sequence[list[int]]
Generate = Callable[[Prompts], list[list[int]]]
"""Token ids of each prompt -> token ids of each reply, greedy, without the end token."""


@dataclass(frozen=True)
class Question:
    """A chat that ends with a user's message, and the reply that counts as right."""

    kind: str
    messages: tuple[dict[str, str], ...]
    expected: str


# Questions -------------------------------------------------------------------------------------------------


def held_out_questions(seed: int = SEED, per_kind: int = PER_KIND) -> list[Question]:
    """Questions of all kinds, about ``per_kind`` of each; always the same for the same arguments."""
    rng = random.Random(seed)
    found = [_first_turn(rng, kind) for kind in EXCHANGES for _ in range(per_kind)]
    found += [_second_turn(rng) for _ in range(per_kind)]
    paraphrases = list(new_paraphrases())
    found += rng.sample(paraphrases, min(2 * per_kind, len(paraphrases)))
    found += [_new_hero(hero) for hero in NEW_HEROES[:per_kind]]
    return found


def _held_out_exchange(rng: random.Random, kind: str) -> Exchange:
    make = EXCHANGES[kind][0]
    return next(e for e in iter(lambda: make(rng), None) if is_held_out(e.question))


def _first_turn(rng: random.Random, kind: str) -> Question:
    exchange = _held_out_exchange(rng, kind)
    return Question(kind, (_user(as_typed(rng, exchange.question)),), exchange.answer)


def _second_turn(rng: random.Random) -> Question:
    kind = rng.choice(("fact", "fact", "fact", "capital", "list", "story"))
    first = _held_out_exchange(rng, kind)
    second = follow_up(rng, first, first.answer)
    turns = (_user(first.question), _assistant(first.answer), _user(as_typed(rng, second.question)))
    return Question("follow-up", turns, second.answer)


def new_paraphrases() -> Iterator[Question]:
    """Questions about the facts that were written by hand for this evaluation only."""
    answers = {record["key"]: record["a"] for record in facts()}
    for line in (DATA / "new_paraphrases.txt").read_text(encoding="utf-8").splitlines():
        topic, question = line.split(": ", 1)
        yield Question("new paraphrase", (_user(question[0].upper() + question[1:] + "?"),), answers[topic])


def _new_hero(hero: str) -> Question:
    return Question("new hero", (_user(f"Tell me a story about a {hero}."),), story_of(hero))


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def _assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


# Backends --------------------------------------------------------------------------------------------------


def transformers_backend(folder: Path, dtype: str) -> Generate:
    """Hugging Face transformers on the CPU; ``dtype`` is float32 or bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    settings = model.generation_config

    def generate_batch(prompts: Prompts) -> list[list[int]]:
        longest = max(map(len, prompts))
        gaps = [longest - len(ids) for ids in prompts]
        padded = [[settings.pad_token_id] * gap + ids for gap, ids in zip(gaps, prompts, strict=True)]
        seen = [[0] * gap + [1] * len(ids) for gap, ids in zip(gaps, prompts, strict=True)]
        with torch.inference_mode():
            output = model.generate(
                torch.tensor(padded),
                attention_mask=torch.tensor(seen),
                max_new_tokens=MAX_NEW_TOKENS,
                do_sample=False,
            )
        return [_until_end(row[longest:].tolist(), settings.eos_token_id) for row in output]

    def generate(prompts: Prompts) -> list[list[int]]:
        batches = [prompts[i : i + BATCH] for i in range(0, len(prompts), BATCH)]
        return [reply for batch in batches for reply in generate_batch(batch)]

    return generate


def openvino_backend(folder: Path) -> Generate:
    """OpenVINO GenAI on the CPU."""
    import numpy
    import openvino
    import openvino_genai

    pipeline = openvino_genai.LLMPipeline(str(folder), "CPU")
    config = pipeline.get_generation_config()
    config.max_new_tokens, config.do_sample = MAX_NEW_TOKENS, False

    def generate_one(ids: list[int]) -> list[int]:
        prompt = openvino_genai.TokenizedInputs(
            openvino.Tensor(numpy.array([ids], dtype=numpy.int64)),
            openvino.Tensor(numpy.ones((1, len(ids)), dtype=numpy.int64)),
        )
        return _until_end(list(pipeline.generate(prompt, config).tokens[0]), config.stop_token_ids)

    return lambda prompts: [generate_one(ids) for ids in prompts]


def onnxruntime_backend(folder: Path) -> Generate:
    """ONNX Runtime GenAI on the CPU."""
    import json

    import onnxruntime_genai

    model = onnxruntime_genai.Model(str(folder))
    settings = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]

    def generate_one(ids: list[int]) -> list[int]:
        params = onnxruntime_genai.GeneratorParams(model)
        params.set_search_options(max_length=len(ids) + MAX_NEW_TOKENS, do_sample=False)
        generator = onnxruntime_genai.Generator(model, params)
        generator.append_tokens(ids)
        while not generator.is_done():
            generator.generate_next_token()
        return _until_end(list(generator.get_sequence(0))[len(ids) :], settings["eos_token_id"])

    return lambda prompts: [generate_one(ids) for ids in prompts]


def _until_end(ids: Sequence[int], ends: int | Sequence[int]) -> list[int]:
    stops = {ends} if isinstance(ends, int) else set(ends)
    at = next((i for i, token in enumerate(ids) if token in stops), len(ids))
    return [int(token) for token in ids[:at]]


def converted(engine_format: str, precision: str, data_dir: Path) -> Path:
    """The bundled model in another format, made by the app's own conversion."""
    from engines import ENGINES
    from engines.models.library import ModelLibrary
    from engines.protocol import Target

    spec = next(spec for spec in ENGINES if spec.model_format == engine_format)
    target = Target(spec.name, "CPU", precision)
    prepared = ModelLibrary(data_dir).prepare(target, spec, lambda _progress: None, threading.Event())
    return prepared.folder


def backends(folder: Path, data_dir: Path | None) -> Iterator[tuple[str, Generate]]:
    """Title and generator of each backend and precision; the first is the reference."""
    yield "transformers fp32", transformers_backend(folder, "float32")
    yield "transformers bf16", transformers_backend(folder, "bfloat16")
    if data_dir is None:
        return
    for precision in ("fp16", "int8", "int4"):
        yield f"OpenVINO {precision}", openvino_backend(converted("openvino", precision, data_dir))
    for precision in ("fp32", "int4"):
        made = converted("onnxruntime-genai", precision, data_dir)
        yield f"ONNX Runtime {precision}", onnxruntime_backend(made)


# Scores ----------------------------------------------------------------------------------------------------


def replies(generate: Generate, tokenizer, questions: Sequence[Question]) -> list[str]:
    """The model's reply to each question, as text."""
    texts = [
        tokenizer.apply_chat_template(q.messages, tokenize=False, add_generation_prompt=True)
        for q in questions
    ]
    prompts = [tokenizer(text)["input_ids"] for text in texts]
    return [tokenizer.decode(ids, skip_special_tokens=True) for ids in generate(prompts)]


def accuracy(questions: Sequence[Question], texts: Sequence[str]) -> dict[str, float]:
    """Share of exact answers per kind, and over all questions as ``all``."""
    hits = defaultdict(list)
    for question, text in zip(questions, texts, strict=True):
        hits[question.kind].append(text == question.expected)
        hits["all"].append(text == question.expected)
    return {kind: sum(found) / len(found) for kind, found in hits.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=WEIGHTS, help="weights for transformers")
    parser.add_argument("--data-dir", type=Path, help="compare all backends, with converted models kept here")
    parser.add_argument("--per-kind", type=int, default=PER_KIND)
    parser.add_argument("--errors", action="store_true", help="show what the reference got wrong")
    args = parser.parse_args()

    import torch
    from transformers import AutoTokenizer

    torch.set_num_threads(2)
    tokenizer = AutoTokenizer.from_pretrained(args.folder)
    questions = held_out_questions(per_kind=args.per_kind)
    reference: list[str] | None = None
    for title, generate in backends(args.folder, args.data_dir):
        texts = replies(generate, tokenizer, questions)
        scores = accuracy(questions, texts)
        if reference is None:
            reference = texts
            print("| backend | " + " | ".join(scores) + " | same as first |")
            print("|---" * (len(scores) + 2) + "|")
            if args.errors:
                _print_errors(questions, texts)
        same = sum(a == b for a, b in zip(texts, reference, strict=True)) / len(texts)
        print(
            f"| {title} | " + " | ".join(f"{s:.2f}" for s in scores.values()) + f" | {same:.3f} |", flush=True
        )


def _print_errors(questions: Sequence[Question], texts: Sequence[str]) -> None:
    for question, text in zip(questions, texts, strict=True):
        if text != question.expected:
            asked = " / ".join(m["content"][:90] for m in question.messages)
            print(
                f"[{question.kind}] {asked}\n    got:      {text[:110]}\n    expected: {question.expected[:110]}"
            )


if __name__ == "__main__":
    main()
