"""A measurement as rows: for a terminal, Markdown and CSV. The figures are the document's, from one place."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from engines.measure.comparison import Comparison
from engines.measure.records import METRICS, Figure, ForeignRow, LaneResult, Measurement, Verdict
from engines.measure.spread import case_figures, counted
from engines.measure.verdict import METRIC_TITLES, advantage_text, excluded, share_of_limit, verdicts
from engines.measure.words import number, percent
from engines.toolkit.spreadsheets import for_spreadsheet

UNITS = {
    "ttft_s": "s",
    "prefill_tok_s": "tok/s",
    "decode_tok_s": "tok/s",
    "answer_s": "s",
    "itl_p95_s": "s",
    "joules_per_token": "J",
}


@dataclass(frozen=True)
class Row:
    """One lane in one case."""

    lane: str
    case: str
    figures: dict[str, Figure]
    disturbed: int
    """Repeats that were disturbed and do not count."""
    excluded: str | None
    result: LaneResult


def rows(measurement: Measurement) -> list[Row]:
    """Every measured lane in every case, also those that failed: without figures, with the reason."""
    found = []
    for result in measurement.measured:
        reason = excluded(result, measurement)
        for case in measurement.suite.cases:
            disturbed = sum(1 for r in result.repeats if r.case == case.name and r.disturbed)
            made = case_figures(result.repeats, case.name)
            found.append(Row(result.lane.key, case.name, made, disturbed, reason, result))
    return found


def spelled(figure: Figure | None, unit: str = "") -> str:
    """`17.5 (17.3–17.6) tok/s`."""
    if figure is None:
        return "–"
    return f"{number(figure.median)} ({number(figure.low)}–{number(figure.high)}) {unit}".rstrip()


def text(measurement: Measurement, job: str | None = None) -> str:
    """For a terminal: the verdict first, then the table."""
    lines = []
    for verdict in verdicts(measurement):
        if job is None or verdict.job == job:
            lines += [f"{verdict.title}: {headline(verdict)}", *(f"  {line}" for line in verdict.because)]
    lines.append("")
    head = ("lane", "case", "TTFT s", "decode tok/s", "answer s", "repeats", "")
    body = [
        (
            row.lane,
            row.case,
            spelled(row.figures.get("ttft_s")),
            spelled(row.figures.get("decode_tok_s")),
            spelled(row.figures.get("answer_s")),
            _repeats(row),
            f"cannot win: {row.excluded}" if row.excluded else "",
        )
        for row in rows(measurement)
    ]
    widths = [max(len(line[at]) for line in (head, *body)) for at in range(len(head) - 1)]
    for line in (head, *body):
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=False)]
        lines.append("  ".join((*cells, line[-1])).rstrip())
    if measurement.foreign:
        lines += ["", "Other benchmarks, under their own rules:"]
        lines += [
            f"  {row.contract}  {row.label}  {row.test}  {': '.join(foreign_figure(row))}"
            for row in measurement.foreign
        ]
    lines += [
        *(f"! {note}" for note in measurement.notes),
        *([measurement.suite.note] if measurement.suite.note else []),
    ]
    return "\n".join(lines)


def _repeats(row: Row) -> str:
    count = len(counted(row.result.repeats, row.case))
    return f"{count}" + (f" (+{row.disturbed} disturbed)" if row.disturbed else "")


def headline(verdict: Verdict) -> str:
    """The verdict in a few words."""
    if verdict.winner is None:
        return "no clear winner" if verdict.confidence == "unclear" else "nothing to recommend"
    if verdict.by is None:
        return f"{verdict.winner} (the only one that can win)"
    return (
        f"{verdict.winner}, {advantage_text(verdict.by, verdict.metric or '')} ahead of {verdict.runner_up}"
    )


def foreign_figure(row: ForeignRow) -> tuple[str, str]:
    """What another benchmark's figure is called, and the figure with its unit: `decode rate`, `17.5 ± 0.3 tok/s`."""
    around = "" if row.deviation is None else f" ± {number(row.deviation)}"
    title = METRIC_TITLES.get(row.metric, "tokens a second, all together")
    return title, f"{number(row.value)}{around} {UNITS.get(row.metric, 'tok/s')}"


def markdown(measurement: Measurement) -> str:
    """The report as Markdown."""
    lines = [f"# Measurement of {_plain(measurement.model)}", ""]
    told = (measurement.created_at, measurement.suite.title, measurement.contract, measurement.status)
    lines += [_plain(" · ".join(told)), ""]
    lines += ["## Verdict", ""]
    for verdict in verdicts(measurement):
        lines += [
            f"**{verdict.title}: {_plain(headline(verdict))}**",
            "",
            *(f"- {_plain(line)}" for line in verdict.because),
            "",
        ]
    lines += ["## Figures", "", "Medians, with the 95 % interval in parentheses.", ""]
    lines += _md_table(
        ("lane", "case", *(f"{METRIC_TITLES[m]} ({UNITS[m]})" for m in METRICS), "repeats"),
        (
            (_crossed(row), _plain(row.case), *(spelled(row.figures.get(m)) for m in METRICS), _repeats(row))
            for row in rows(measurement)
        ),
    )
    lines += ["", "## Lanes", ""]
    lines += _md_table(
        (
            "lane",
            "runs on",
            "weights",
            "share of memory limit",
            "peak memory",
            "load",
            "quality",
            "cannot win",
        ),
        (
            (
                _plain(result.lane.key),
                _plain(result.device or "–"),
                _gb(result.weight_bytes),
                _percent(share_of_limit(result, measurement)),
                _gb(result.peak_rss_bytes),
                "–" if result.ledger.load_s is None else f"{result.ledger.load_s:.2f} s",
                _quality(result),
                _plain(excluded(result, measurement) or ""),
            )
            for result in measurement.measured
        ),
    )
    lines += ["", "## Machine", "", *_facts(measurement.machine), *_facts(measurement.environment)]
    if measurement.foreign:
        lines += ["", "## Other benchmarks, under their own rules", ""]
        lines += _md_table(
            ("contract", "what", "test", "figure", "value"),
            (
                (_plain(r.contract), _plain(r.label), _plain(r.test), *foreign_figure(r))
                for r in measurement.foreign
            ),
        )
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """Text that is neither HTML nor Markdown, on one line; underscores inside words mean nothing there."""
    return re.sub(r"([\\`*<|~]|\](?=\())", r"\\\1", " ".join(text.split()))


def _md_table(head: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    return [line(head), "|" + "---|" * len(head), *(line(cells) for cells in body)]


def _crossed(row: Row) -> str:
    return f"~~{_plain(row.lane)}~~" if row.excluded else _plain(row.lane)


def _quality(result: LaneResult) -> str:
    quality = result.quality
    if quality is None:
        return "not checked"
    return f"{quality.instructions_passed} of {quality.instructions_total} obeyed"


def _facts(facts: Any) -> list[str]:
    return [
        _plain(f"- {name.replace('_', ' ')}: {value}") for name, value in facts.items() if value is not None
    ]


def _gb(count: int | None) -> str:
    if not count:
        return "–"
    return f"{count / 1e9:.2f} GB" if count >= 5e7 else f"{count / 1e6:.1f} MB"


def _percent(share: float | None) -> str:
    return "–" if share is None else percent(share)


def csv_text(measurement: Measurement) -> str:
    """Every repeat as one line, with its figures; spreadsheets open it."""
    columns = (
        *(
            "contract",
            "measurement",
            "created_at",
            "model",
            "lane",
            "engine",
            "device",
            "precision",
            "settings",
        ),
        *(
            "case",
            "round",
            "attempt",
            "status",
            "counts",
            "disturbed",
            "refused",
            "prompt_tokens",
            "prompt_sha256",
        ),
        *("output_tokens", *METRICS, "total_s", "other_load_cores"),
    )
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\r\n")
    writer.writeheader()
    for result in measurement.measured:
        target = result.lane.target
        for repeat in result.repeats:
            row = {
                "contract": measurement.contract,
                "measurement": measurement.id,
                "created_at": measurement.created_at,
                "model": measurement.model,
                "lane": result.lane.key,
                **{name: getattr(target, name) for name in ("engine", "device", "precision")},
                "settings": ", ".join(f"{k}={v}" for k, v in sorted(result.lane.settings.items())),
                "case": repeat.case,
                "round": repeat.number,
                "output_tokens": len(repeat.token_offsets_s),
                **{
                    name: getattr(repeat, name)
                    for name in columns
                    if hasattr(repeat, name) and name != "model"
                },
            }
            writer.writerow({name: _harmless(value) for name, value in row.items()})
    return out.getvalue()


def _harmless(value: Any) -> Any:
    return for_spreadsheet(value) if isinstance(value, str) else value


def comparison_text(comparison: Comparison) -> str:
    """For a terminal."""
    lines = []
    if comparison.why_not:
        lines.append(f"Not comparable: {comparison.why_not}")
    for title, names in (
        ("Changed", comparison.changes),
        ("New lanes", comparison.new),
        ("Lanes gone", comparison.removed),
        ("ALARM: lanes that fail now", comparison.failed),
    ):
        if names:
            lines += [f"{title}:", *(f"  {name}" for name in names)]
    marks = {"alarm": "ALARM: slower", "note": "slower", "better": "faster", "same": ""}
    for d in comparison.differences:
        lines.append(
            f"  {d.lane}  {d.case}  {METRIC_TITLES[d.metric]}: {number(d.before)} → {number(d.now)} "
            f"{UNITS[d.metric]} ({percent(d.of_figure, signed=True, digits=1)}) {marks[d.level]}".rstrip()
        )
    return "\n".join(lines)
