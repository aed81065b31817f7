"""The prompts of a measurement: bundled texts of our own, begun differently each time so that no kept cache helps.

A prompt is a function of case, round and nothing else: every lane gets the same, and so does whoever measures again.
"""

from __future__ import annotations

import functools
from pathlib import Path

from engines.measure.records import Case
from engines.protocol import GenerationRequest, Message

_FOLDER = Path(__file__).parent / "texts"
_CHARACTERS_PER_TOKEN = 8
"""No tokenizer puts so many into one on average; what is too long is cut in the worker."""
_TASKS = {
    "chat": "Answer the following letter.",
    "content": "Do what the following task asks for.",
    "creative": "Go on with the following.",
    "structured": "Do what the following task asks for, and answer with nothing else.",
    "code": "Answer the following questions about programs.",
    "summarisation": "Summarise the following in a few sentences.",
}


@functools.cache
def bundled(name: str) -> str:
    """One of the texts that come with the app."""
    return (_FOLDER / f"{name}.txt").read_text(encoding="utf-8").strip()


def prompt_text(case: Case, variant: int) -> str:
    """A text that is long enough for the case; another beginning and order of paragraphs for every variant."""
    if case.text is not None and not case.prompt_tokens:
        return f"({variant}) {case.text}"
    source = case.text or bundled(case.category)
    paragraphs = [part.strip() for part in source.split("\n\n") if part.strip()]
    head = f"{variant}. {_TASKS.get(case.category, 'Answer the following.')}"
    parts, length, at = [head], len(head), variant
    while length < case.prompt_tokens * _CHARACTERS_PER_TOKEN or len(parts) == 1:
        paragraph = f"[{at}] {paragraphs[at % len(paragraphs)]}"
        parts.append(paragraph)
        length += len(paragraph)
        at += 1
    return "\n\n".join(parts)


def request(case: Case, variant: int, new_tokens: int | None = None) -> GenerationRequest:
    """The request under the contract: greedy, exactly so many tokens in and out, nothing kept."""
    return GenerationRequest(
        (Message("user", prompt_text(case, variant)),),
        max_new_tokens=new_tokens or case.new_tokens,
        ignore_eos=True,
        reuse_kv_cache=False,
        prompt_tokens=case.prompt_tokens or None,
    )
