"""What a new person reads first: what this PC has, what is ready, and what the bundled model is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ui import format as fmt
from ui.compare.offer import Offer


def welcome_text(offer: Offer, machine: Mapping[str, Any]) -> str:
    usable = offer.usable()
    ready = " · ".join(_ready(offer, spec.name, spec.title) for spec in usable)
    missing = "".join(
        f"<li><strong>{fmt.text(spec.title)}</strong> {fmt.text(found.reason or 'cannot run here.')} "
        f"<em>{fmt.text(found.remedy or '')}</em></li>"
        for spec in offer.specs
        if (found := offer.availability.get(spec.name)) and spec not in usable
    )
    count = fmt.counted(missing.count("<li>"), "engine")
    more = f"<details><summary>{count} not available yet: why</summary><ul>{missing}</ul></details>"
    return (
        "<h2>One prompt, every local backend, side by side</h2>"
        f"<p>This PC: {fmt.text(_machine(machine))}.</p>"
        f"<p>{'Ready: ' + ready if ready else 'No engine is ready yet; the System tab says what to install.'}</p>"
        f"{more if missing else ''}"
        "<p>It starts with the <strong>bundled demo model</strong>: a tiny model trained for this app, so that "
        "speed and differences can be seen within seconds. It knows a little about AI PCs and nothing else; "
        "choose a real model in each panel when you like.</p>"
    )


def _ready(offer: Offer, name: str, title: str) -> str:
    devices = ", ".join(offer.availability[name].devices)
    return f"<strong>{fmt.text(title)}</strong> on {fmt.text(devices)}"


def _machine(machine: Mapping[str, Any]) -> str:
    cores = machine.get("physical_cores") or machine.get("logical_cores")
    parts = [
        machine.get("processor"),
        fmt.counted(cores, "core") if cores else None,
        f"{fmt.size(machine.get('memory_bytes'))} memory" if machine.get("memory_bytes") else None,
        machine.get("system_name"),
    ]
    return ", ".join(str(part) for part in parts if part)
