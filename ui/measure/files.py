"""A measurement as a file of each kind: a page, text, rows, its document, llama-bench's lines."""

from __future__ import annotations

from engines.measure import document, foreign, tables
from engines.measure.privacy import without_private
from engines.measure.records import Measurement
from ui.measure.report_html import report

FORMATS = (
    ("HTML page", "html"),
    ("Markdown", "md"),
    ("CSV", "csv"),
    ("JSON", "json"),
    ("JSON Lines, as llama-bench writes", "jsonl"),
)
"""(label, ending)."""


def text_of(
    measurement: Measurement, kind: str, *, private: bool = False, beside: Measurement | None = None
) -> str:
    """The file's text; raises ValueError for a kind that there is none of."""
    shown = measurement if private else without_private(measurement)
    if kind == "html":
        return report(measurement, beside=(beside,) if beside else (), private=private)
    if kind == "md":
        return tables.markdown(shown)
    if kind == "csv":
        return "\ufeff" + tables.csv_text(shown)  # so that a spreadsheet reads it as UTF-8
    if kind == "json":
        return document.dumps(shown) + "\n"
    if kind == "jsonl":
        return "".join(f"{document.line(row)}\n" for row in foreign.llama_bench_lines(shown))
    raise ValueError(f"There is no report of the kind “{kind}”.")
