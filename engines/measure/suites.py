"""What is asked: quick, standard and sweep, and a person's own from a JSON Lines file; scaled where time is short.

Standard's categories and lengths follow MLPerf Client's (content generation, creative writing, summarisation light
and moderate, code analysis), with texts of our own. Prompts are cut to exact token counts by the lane's tokenizer, in
its worker; every repeat gets another variant, so that nothing kept from the one before is of use.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

from engines.measure.records import PASSES, Case, Suite
from engines.measure.words import percent
from engines.toolkit import text_files

LEAST_NEW_TOKENS = 16
"""A decode rate over fewer gaps says little."""
LEAST_PROMPT_TOKENS = 64
MOST_TOKENS = 10_000_000
"""Of a case; no model has a longer context."""
SWEEP_DEPTHS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)

QUICK = Suite(
    "quick",
    "Quick",
    (
        Case("chat", "Short chat", "chat", 128, 128),
        Case("summary", "Summary of a document", "summarisation", 896, 64),
    ),
    passes=("quality", "speed", "memory"),
    instruction_tokens=32,
    target_s=120.0,
)
STANDARD = Suite(
    "standard",
    "Standard",
    (
        Case("content-generation", "Content generation", "content", 128, 256),
        Case("creative-writing", "Creative writing", "creative", 256, 512),
        Case("structured-text", "Structured text", "structured", 512, 256),
        Case("code-analysis", "Code analysis", "code", 1024, 256),
        Case("summarisation-1k", "Summary of 1 k tokens", "summarisation", 1024, 128),
        Case("summarisation-4k", "Summary of 4 k tokens", "summarisation", 4096, 128),
    ),
    passes=("quality", "speed", "memory", "foreground", "race"),
)


class SuiteError(ValueError):
    """A suite that cannot be used; the message says which line and why."""


def sweep(context_tokens: int | None = None) -> Suite:
    """Depth after depth from 128 to 4 k, and on to the context where it is known and longer."""
    longest = max(4096, context_tokens or 0)
    depths = [depth for depth in SWEEP_DEPTHS if depth + 32 <= longest or depth <= 4096]
    cases = tuple(Case(f"depth-{d}", f"Depth {d:,}", "summarisation", d, 32) for d in depths)
    return Suite("sweep", "Sweep over the prompt's length", cases, passes=("quality", "speed", "memory"))


def to_the_context(suite: Suite, context_tokens: int | None) -> Suite:
    """A sweep goes on to the longest context of its lanes once that is known; other suites stay as they are."""
    if suite.name != "sweep" or context_tokens is None:
        return suite
    return replace(suite, cases=sweep(context_tokens).cases)


def named(name: str) -> Suite:
    """`quick`, `standard`, `sweep`, or the suite in a JSON Lines file; raises SuiteError."""
    built_in = {"quick": QUICK, "standard": STANDARD, "sweep": sweep()}
    if name in built_in:
        return built_in[name]
    path = Path(name).expanduser()  # shells leave `--suite=~/mine.jsonl` as it is
    if not path.is_file():
        raise SuiteError(f"There is no suite “{name}”: choose quick, standard, sweep, or a JSON Lines file.")
    return from_file(path)


def from_file(path: Path) -> Suite:
    """One case a line: {"prompt": TEXT, "new_tokens": N, "prompt_tokens": N, "name": …}; raises SuiteError."""
    try:
        lines = text_files.read(path).split("\n")  # splitlines would cut at U+2028 within a text
    except (OSError, UnicodeError) as error:
        raise SuiteError(f"{path} cannot be read: {error}.") from error
    cases = tuple(_case(line, number, path) for number, line in enumerate(lines, 1) if line.strip())
    if not cases:
        raise SuiteError(f"{path} holds no case; write one JSON object a line with at least a prompt.")
    if len({case.name for case in cases}) != len(cases):
        raise SuiteError(f"{path} names two cases alike; every case needs a name of its own.")
    return Suite("own", f"Own: {path.name}", cases)


def _case(line: str, number: int, path: Path) -> Case:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SuiteError(f"{path}, line {number}: not JSON ({error}).") from error
    if (
        not isinstance(record, dict)
        or not isinstance(record.get("prompt"), str)
        or not record["prompt"].strip()
        or not _is_text(record["prompt"])
    ):
        raise SuiteError(f'{path}, line {number}: a case needs a text under "prompt".')
    for name, least, default in (("prompt_tokens", 1, 0), ("new_tokens", 2, 128)):
        value = record.setdefault(name, default)
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or (value != default and not least <= value <= MOST_TOKENS):
            raise SuiteError(
                f'{path}, line {number}: "{name}" must be a whole number of {least} or more, '
                f"{MOST_TOKENS:,} at most."
            )
    title = str(record.get("name") or f"case-{number}")
    if not _is_text(title):
        raise SuiteError(f'{path}, line {number}: "name" must be a text.')
    return Case(title, title, "own", record["prompt_tokens"], record["new_tokens"], record["prompt"])


def _is_text(text: str) -> bool:
    """JSON can spell half a character, which no tokenizer takes and no file can hold."""
    return not re.search("[\ud800-\udfff]", text)


def with_repeats(suite: Suite, repeats: int | None) -> Suite:
    """The suite with another number of repeats; None: as it is."""
    return suite if repeats is None else replace(suite, repeats=repeats)


def ordered_passes(suite: Suite) -> tuple[str, ...]:
    """The passes of a suite in the order in which they are done; making ready always comes first."""
    return tuple(name for name in PASSES if name == "ready" or name in suite.passes)


def fitting(suite: Suite, context_tokens: int | None) -> Suite:
    """Without the cases that no lane's context holds: nothing is cut silently, it is left out and said."""
    if context_tokens is None:
        return suite
    kept = tuple(c for c in suite.cases if c.prompt_tokens + c.new_tokens <= context_tokens)
    gone = [c.title for c in suite.cases if c not in kept]
    if not gone:
        return suite
    note = f"Left out, longer than the context of {context_tokens:,} tokens: {', '.join(gone)}."
    return replace(suite, cases=kept, note=" ".join(filter(None, (suite.note, note))))


def scaled(suite: Suite, factor: float) -> Suite:
    """Every case shortened by a factor below 1, the same for all lanes; prompts and replies keep a least length."""
    if factor >= 1:
        return suite
    cases = tuple(
        replace(
            case,
            prompt_tokens=_shorter(case.prompt_tokens, factor, LEAST_PROMPT_TOKENS),
            new_tokens=_shorter(case.new_tokens, factor, LEAST_NEW_TOKENS),
        )
        for case in suite.cases
    )
    note = (
        f"Shortened to {percent(factor)}: this machine is slow for the suite's {suite.target_s:.0f} s a lane."
    )
    tokens = _shorter(suite.instruction_tokens, factor, LEAST_NEW_TOKENS)
    return replace(
        suite, cases=cases, instruction_tokens=tokens, note=" ".join(filter(None, (suite.note, note)))
    )


def _shorter(tokens: int, factor: float, least: int) -> int:
    return min(tokens, max(least, int(tokens * factor) // 8 * 8))
