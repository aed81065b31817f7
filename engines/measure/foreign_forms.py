"""The forms in which benchmarks write their results, as one mapping per result: JSON, JSON Lines, CSV, Markdown, SQL.

What a mapping means is foreign.py's business. SQL is read and never run: of it only llama-bench's INSERT lines count.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_INSERT = re.compile(r"INSERT INTO llama_bench \(([\w, ]+)\) VALUES \((.*)\);?", re.IGNORECASE)
_WHOLE = re.compile(r"-?\d{1,30}")
_NUMBER = re.compile(r"-?\d{1,30}(\.\d{1,30})?(e[+-]?\d{1,3})?", re.IGNORECASE)


def entries(text: str) -> Sequence[Mapping[str, Any]]:
    """The results in a file's text, whatever its form; raises ValueError where it has none of these forms."""
    documents = _documents(text)
    if documents is not None:
        flat = documents[0] if len(documents) == 1 and isinstance(documents[0], list) else documents
        if not all(isinstance(entry, Mapping) for entry in flat):
            raise ValueError("a result is no object")
        return flat
    lines = text.split("\n")
    try:
        for form in (_sql, _markdown, _csv):
            if found := list(form(lines)):
                return found
    except csv.Error as error:
        raise ValueError(str(error)) from error
    raise ValueError("no JSON, no table")


def _documents(text: str) -> list[Any] | None:
    """JSON, or JSON Lines; None for what is neither. Raises ValueError for what only begins like them."""
    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        return [json.loads(text)]
    except ValueError:
        return [json.loads(line) for line in text.split("\n") if line.strip()]


def _sql(lines: list[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if found := _INSERT.fullmatch(line.strip()):
            names = [name.strip() for name in found[1].split(",")]
            (values,) = csv.reader([found[2]], quotechar="'", skipinitialspace=True)
            yield _row(names, values)


def _markdown(lines: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of tables; other lines, which a terminal shows between them, are passed over."""
    names: list[str] = []
    for line in (line.strip() for line in lines):
        if not (line.startswith("|") and line.endswith("|") and len(line) > 1):
            names = []
            continue
        cells = [cell.strip().strip("*") for cell in line[1:-1].split("|")]
        if not names:
            names = cells
        elif not set(line) <= set("|-: "):
            yield _row(names, cells)


def _csv(lines: list[str]) -> Iterator[dict[str, Any]]:
    reader = csv.reader(io.StringIO("\n".join(lines)))
    names = next(reader, [])
    if len(names) > 1:
        for values in reader:
            if any(values):
                yield _row(names, values)


def _row(names: list[str], values: list[str]) -> dict[str, Any]:
    if len(names) != len(values):
        raise ValueError(f"a row has {len(values)} values under {len(names)} names")
    return {name: typed(value) for name, value in zip(names, values, strict=True)}


def typed(text: str) -> int | float | str:
    """A number where a table's cell holds one and nothing else."""
    if _WHOLE.fullmatch(text):
        return int(text)
    return float(text) if _NUMBER.fullmatch(text) else text
