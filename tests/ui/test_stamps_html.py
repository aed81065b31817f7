"""The badge under a reply, and what it opens."""

from engines.telemetry.disturbance import OtherLoad
from engines.telemetry.placement import Placement
from ui.stamps_html import details

EVIDENCE = ("Asked for NPU.", "The worker kept <b>1.90</b> cores busy.")


def test_a_badge_says_where_and_opens_its_evidence():
    html = details(False, None, Placement("AUTO", "CPU", "CPU", "proven", EVIDENCE))
    assert "proven: CPU" in html
    assert "<li>Asked for NPU.</li>" in html
    assert "&lt;b&gt;1.90&lt;/b&gt;" in html  # names of programs and devices come from outside
    assert html.startswith("<details")


def test_a_contradiction_names_both_sides():
    html = details(False, None, Placement("NPU", "NPU", "CPU", "contradicted", EVIDENCE))
    assert "contradicted: NPU claimed, CPU seen" in html


def test_a_disturbed_run_gives_its_reasons_and_a_quiet_one_nothing():
    load = OtherLoad(2.0, 0.3, 0.6, 0.25, reasons=("Other programs kept 0.60 cores busy.",))
    assert "Other programs kept 0.60 cores busy." in details(True, load, None)
    assert details(False, load, None) == ""
    assert details(None, None, None) == ""
    assert details(None, None, Placement("x", None, None, None)) == ""
