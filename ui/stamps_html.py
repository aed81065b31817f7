"""What stands under a reply about its numbers: where it ran, with the evidence one click away; what disturbed it."""

from __future__ import annotations

from engines.telemetry.disturbance import OtherLoad
from engines.telemetry.placement import Placement
from ui import format as fmt

_MARKS = {"proven": "✓", "claimed": "?", "contradicted": "✕"}
_MEANINGS = {
    "proven": "seen at work",
    "claimed": "the library says so; nothing seen speaks for or against it",
    "contradicted": "it did not run where it claims; its numbers count nowhere",
}


def details(disturbed: bool | None, load: OtherLoad | None, placement: Placement | None) -> str:
    """The badge of a run with its evidence, and the stamp “disturbed” with its numbers; empty where nobody looked."""
    return _placement(placement) + _disturbed(disturbed, load)


def _placement(placement: Placement | None) -> str:
    if placement is None or placement.badge not in _MARKS:
        return ""
    where = placement.observed or placement.claimed or ""
    if placement.badge == "contradicted":
        where = f"{placement.claimed or placement.requested} claimed, {placement.observed or 'nothing'} seen"
    items = "".join(f"<li>{fmt.text(sentence)}</li>" for sentence in placement.evidence)
    return (
        f'<details class="seen seen-{placement.badge}"><summary><span class="stamp {placement.badge}">'
        f'<span aria-hidden="true">{_MARKS[placement.badge]} </span>{placement.badge}: {fmt.text(where)}</span>'
        f"</summary><p>{_MEANINGS[placement.badge]}</p><ul>{items}</ul></details>"
    )


def _disturbed(disturbed: bool | None, load: OtherLoad | None) -> str:
    if not disturbed or load is None:
        return ""
    items = "".join(f"<li>{fmt.text(reason)}</li>" for reason in load.reasons)
    return (
        '<details class="seen"><summary><span class="stamp warn">disturbed</span></summary>'
        f"<ul>{items}</ul></details>"
    )
