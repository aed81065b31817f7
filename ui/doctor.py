"""What this machine has and which engines can use it, as text and as a document.

The command line and the System tab say the same: every engine with each of its devices, available or why
not and what to do. Nothing is judged here; the answers are the engines' own.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from engines import ENGINES
from engines.protocol import Availability, DeviceStatus, EngineSpec
from engines.telemetry.sights import Sight

_WIDTH = 100


def doctor_document(
    availability: Mapping[str, Availability],
    facts: Mapping[str, Any],
    specs: Sequence[EngineSpec] = ENGINES,
    seen: Sequence[Sight] = (),
) -> dict[str, Any]:
    """One JSON-ready document: `machine`, `engines`, and `readings`: what can be seen while something runs."""
    titles = {spec.name: spec for spec in specs}
    return {
        "machine": dict(facts),
        "engines": [_engine(name, found, titles.get(name)) for name, found in availability.items()],
        "readings": [asdict(sight) for sight in seen],
    }


def doctor_text(
    availability: Mapping[str, Availability],
    facts: Mapping[str, Any],
    specs: Sequence[EngineSpec] = ENGINES,
    seen: Sequence[Sight] = (),
) -> str:
    """The same for people."""
    lines = ["This machine", *(f"  {line}" for line in machine_lines(facts))]
    by_name = {spec.name: spec for spec in specs}
    for name, found in availability.items():
        spec = by_name.get(name)
        title = f"{spec.title} ({name})" if spec else name
        lines += ["", f"{title}: {'available' if found.ok else 'not available'}"]
        if found.versions:
            lines += _wrapped(versions_text(found.versions))
        if not found.ok:
            lines += _wrapped(found.reason or "It does not say why.")
            lines += _wrapped(f"→ {found.remedy}") if found.remedy else []
        for status in found.device_status:
            lines += _device_lines(status)
        if spec and spec.advice:
            lines += _wrapped(f"Note: {spec.advice}")
    lines += ["", "What can be seen while something runs"] if seen else []
    for sight in seen:
        text = f"{'yes' if sight.ok else 'no '}  {sight.name} ({sight.source})"
        lines += _wrapped(text if sight.ok else f"{text}: {sight.reason}", "     ")
        lines += _wrapped(f"     → {sight.remedy}", "       ") if sight.remedy and not sight.ok else []
    return "\n".join(lines)


def machine_lines(facts: Mapping[str, Any]) -> list[str]:
    """Processor, memory and system, one line each; what is unknown is left out."""
    cores, threads = facts.get("physical_cores"), facts.get("logical_cores")
    counts = [f"{cores} cores" if cores else "", f"{threads} threads" if threads else ""]
    memory = facts.get("memory_bytes")
    lines = [
        ", ".join(part for part in (str(facts.get("processor") or ""), *counts) if part),
        f"{memory / 1e9:.1f} GB memory" if memory and isinstance(memory, (int, float)) else "",
        " ".join(str(facts[key]) for key in ("system_name", "system_version") if facts.get(key)),
        f"running on {facts['power']}" if facts.get("power") else "",
    ]
    return [line for line in lines if line]


def versions_text(versions: Mapping[str, str]) -> str:
    """`openvino 2026.4.1, torch 2.13.0`."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _engine(name: str, found: Availability, spec: EngineSpec | None) -> dict[str, Any]:
    return {
        "name": name,
        "title": spec.title if spec else name,
        "ok": found.ok,
        "devices": list(found.devices),
        "versions": dict(found.versions),
        "reason": found.reason,
        "remedy": found.remedy,
        "advice": spec.advice if spec else None,
        "device_status": [
            {
                "device": status.device,
                "ok": status.ok,
                "title": status.title,
                "reason": status.reason,
                "remedy": status.remedy,
            }
            for status in found.device_status
        ],
    }


def _device_lines(status: DeviceStatus) -> list[str]:
    mark = "yes" if status.ok else "no "
    text = status.title if status.ok else status.reason
    lines = _wrapped(f"{status.device:<7}{mark}  {text or ''}".rstrip(), "             ")
    return lines + (
        _wrapped(f"             → {status.remedy}", "               ")
        if status.remedy and not status.ok
        else []
    )


def _wrapped(text: str, rest: str = "") -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent="  ", subsequent_indent=f"  {rest}", break_on_hyphens=False
    )
