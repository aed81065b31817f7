"""The report as a reader gets it: one file, no script, nothing private, figures that follow from its own offsets."""

import dataclasses
import re
import statistics
from pathlib import Path

import pytest

from engines.measure.privacy import without_private
from engines.measure.records import Case, Measurement
from tests.ui.accessibility import serious
from tests.ui.measure import samples
from ui.measure.board import Board, Column, lengths
from ui.measure.charts import Line, crossings_of
from ui.measure.contract import POINTS
from ui.measure.report_html import report

OUTSIDE = re.compile(r"""(?:src|href|url|action)\s*[=(]\s*["']?(?!#)""")
WHOLE = pytest.mark.parametrize("sample", [samples.clear, samples.unclear, samples.swept, samples.own])


def text_of(html: str) -> str:
    """What a reader sees, without tags."""
    return " ".join(re.sub(r"<[^>]+>", " ", html.partition("</head>")[2]).split())


@WHOLE
def test_a_report_is_one_file_without_script_or_address(sample):
    html = report(sample())
    assert "<script" not in html
    assert not OUTSIDE.search(html)
    assert "default-src 'none'" in html


def test_where_every_repeat_was_disturbed_it_says_why_there_is_no_verdict():
    clear = samples.clear()
    lanes = [
        dataclasses.replace(
            lane, repeats=tuple(dataclasses.replace(each, disturbed=True) for each in lane.repeats)
        )
        for lane in clear.lanes
    ]
    text = text_of(report(dataclasses.replace(clear, lanes=tuple(lanes))))
    assert "None yet: other programs disturbed" in text
    assert "other programs disturbed" not in text_of(report(clear))


def test_figures_follow_from_the_offsets_in_the_same_file():
    """The ten lines with which a reader checks a rate."""
    html = report(samples.clear())
    block = html.partition("Every token&#x27;s time")[2] or html.partition("Every token's time")[2]
    first_lane = block.partition("</details>")[0]
    rates = []
    for row in re.findall(r"<tr>(.*?)</tr>", first_lane)[1:]:
        case, offsets = re.search(r"<th[^>]*>(\S+)</th>", row)[1], re.search(r"ms-offsets\">([^<]+)<", row)[1]
        at = [float(ms) / 1000 for ms in offsets.split()]
        if case == "chat":
            rates.append((len(at) - 1) / (at[-1] - at[0]))
    shown = re.search(r'aria-label="Figures">.*?<td class="best">([\d.]+)', html, re.DOTALL)[1]
    assert len(rates) == 5
    assert shown == f"{statistics.median(rates):.1f}"


def test_a_lane_that_cannot_win_is_crossed_out_with_its_reason_and_never_best():
    html = report(samples.clear())
    row = re.search(
        r"<tr><th scope=\"row\"><span class=\"badge p3\">3.*?</tr>", html.partition("ms-grouped")[2]
    )[0]
    assert row.count("<s>") == 5
    assert 'class="best"' not in row
    assert "7 of 20 answers are garbage" in text_of(html)
    assert "The worker ended while it compiled x.xml" in text_of(html)
    assert "→ Update it." in text_of(html)


def test_what_was_disturbed_is_told_and_not_counted():
    said = text_of(report(samples.clear()))
    assert "1 repeat disturbed by other load, and not counted" in said
    assert "1.4 cores kept busy by other programs" in said
    assert "10 + 1 disturbed" in said


def test_no_clear_winner_is_said_and_nobody_is_marked_best():
    html = report(samples.unclear())
    assert "no clear winner" in html
    assert "their 95 % intervals overlap" in html
    assert "ms-winner" not in html.partition("</head>")[2]
    assert "(best)" not in html


@pytest.mark.parametrize("private", ["diary", "Dear", "/home/jo", "secret models", "cache/ov"])
def test_a_report_holds_nothing_of_the_person(private):
    own = samples.own()
    assert private in report(own, private=True) + str(own)
    assert private not in report(own)


@pytest.mark.parametrize(
    ("said", "left"),
    [
        (r"not found: C:\Users\Jo Doe\models\phi\model.bin.", "not found: model.bin."),
        (r"\\server\share\secret\x.xml is gone", "x.xml is gone"),
        ("could not read /home/jo doe/models/a.safetensors (13)", "could not read a.safetensors (13)"),
        ("in ~/private/x and /opt/y/z", "in x and z"),
        ("[Errno 2] No such file: '/srv/jo doe/my models/x y.bin'", "[Errno 2] No such file: 'x y.bin'"),
        (r"cannot open 'D:\\Jo Doe\\models\\x.bin'", "cannot open 'x.bin'"),
        ("from file:///home/jo/m.gguf, /mnt/c/Users/Jo Doe/m/a.bin", "from m.gguf, a.bin"),
        (r"\\?\C:\Users\Jo Doe\x.bin is gone", "x.bin is gone"),
        (r"in /home/jo and C:\Users\jo", "in ~ and ~"),
        ("openvino-genai/CPU/int4 with org/model at 3/4", "openvino-genai/CPU/int4 with org/model at 3/4"),
        ("tok/s 12, 1/2 of https://example.org/page", "tok/s 12, 1/2 of https://example.org/page"),
    ],
)
def test_paths_of_every_system_become_their_last_part(said, left):
    noted = dataclasses.replace(samples.unclear(), notes=(said,))
    assert without_private(noted).notes == (left,)


def test_what_is_private_changes_no_figure():
    own = samples.own()
    assert [r.token_offsets_s for lane in without_private(own).lanes for r in lane.repeats] == [
        r.token_offsets_s for lane in own.lanes for r in lane.repeats
    ]
    assert without_private(samples.clear()).machine["processor"] == samples.MACHINE["processor"]
    assert "name" not in without_private(samples.clear()).machine
    busy = dataclasses.replace(
        samples.clear(), environment={"other_programs": ["diary.exe"], "power": "mains"}
    )
    assert without_private(busy).environment == {"power": "mains"}


def test_names_are_text_whatever_they_are():
    nasty = "<img src=x onerror=alert(1)>"
    target = dataclasses.replace(samples.OPENVINO, model=nasty, precision='"><b>')
    lane = samples.lane(target, 10, 100)
    lane = dataclasses.replace(lane, versions={nasty: nasty}, placement={"summary": nasty})
    html = report(samples.measurement(lane, model=nasty, notes=(nasty,), environment={nasty: nasty}))
    assert nasty not in html
    assert '"><b>' not in html


def test_other_benchmarks_stand_under_their_own_name():
    html = report(samples.own())
    ours, _, theirs = html.partition('aria-label="Other benchmarks"')
    assert "17.5" in theirs.partition("</section>")[0]
    assert "llama-bench" not in ours.partition("</head>")[2]


def test_two_measurements_side_by_side():
    fast = samples.measurement(samples.lane(samples.OPENVINO, 20, 300), samples.lane(samples.NPU, 9, 90))
    slow = samples.measurement(
        samples.lane(samples.OPENVINO, 16, 300, versions={"openvino": "2025.1"}),
        contract="backend-arena-measure/0",
        machine={**samples.MACHINE, "processor": "Other CPU"},
    )
    said = text_of(report(fast, beside=[slow]))
    beside = said.partition("Beside Other CPU, 2026-11-25")[2]
    assert "+25 %" in beside
    assert "openvino: 2025.1 → 2026.4.1" in beside
    assert "Only here: openvino-genai/NPU/int4" in beside
    assert "different contracts" in beside


def test_prompts_taken_whole_stand_beside_their_own_and_not_beside_one_of_them_all():
    one, two = (Case(name, name.title(), "own", 0, 64, "…") for name in ("bread", "river"))
    long_one, long_two = (dataclasses.replace(case, prompt_tokens=90) for case in (one, two))
    fast, slow = samples.repeats(20, 300, (long_one,)), samples.repeats(10, 300, (long_two,))
    lane = dataclasses.replace(samples.lane(samples.OPENVINO, 20, 300), repeats=(*fast, *slow))
    suite = dataclasses.replace(samples.SUITE, name="own", cases=(one, two))
    named = samples.measurement(lane, suite=suite)
    for other in (named, without_private(named)):
        said = (
            text_of(report(named, beside=[other], private=True))
            .partition("Beside ")[2]
            .partition("Tokens over")[0]
        )
        assert {"+0 %"} == set(re.findall(r"[+−]\d+ %", said))


def test_where_lanes_cross():
    one, other = (Board(samples.clear()).lanes[i] for i in (0, 1))
    falls, rises = ((128.0, 20.0), (512.0, 10.0)), ((128.0, 10.0), (512.0, 20.0))
    assert [round(x) for *_, x in crossings_of(Line(one, falls), Line(other, rises))] == [256]
    assert crossings_of(Line(one, falls), Line(other, falls)) == []
    assert crossings_of(Line(one, falls), Line(other, ((64.0, 1.0), (1024.0, 2.0)))) == []


def test_a_sweep_says_where_lanes_cross_and_fail():
    said = text_of(report(samples.swept()))
    assert re.search(r"1 and 2 cross at about (9\d\d|1,0\d\d) tokens", said)
    assert "1 fails at 4,096 tokens" in said


@pytest.mark.parametrize(
    ("values", "unit", "spelled"),
    [
        ((0.087, 0.412), "s", ["87", "412"]),
        ((0.4, 6.82), "s", ["0.40", "6.82"]),
        ((17.25, 8.4), "tok/s", ["17.2", "8.4"]),
        ((1204.0, 9.0), "tok/s", ["1,204", "9"]),
        ((0.0,), "s", ["0.000"]),
    ],
)
def test_a_column_has_one_unit_and_aligned_points(values, unit, spelled):
    column = Column.of(values, unit)
    assert [column.spell(value) for value in values] == spelled


def test_nothing_measured_yet_is_a_page_too():
    waiting = dataclasses.replace(samples.clear().lanes[0], status="waiting", repeats=(), quality=None)
    html = report(samples.measurement(waiting, status="running"))
    assert "waiting" in html
    assert "Verdict" not in html


def test_the_contract_is_the_documented_one():
    documented = re.findall(r"^\d+\. \*\*(.+?)\*\*", Path("docs/measure.md").read_text("utf-8"), re.MULTILINE)
    assert [title for title, _ in POINTS] == documented


def long_names() -> Measurement:
    """Settings behind the target, many lanes."""
    lanes = [
        dataclasses.replace(
            samples.lane(samples.OPENVINO, 10 + n, 300),
            lane=dataclasses.replace(
                samples.lane(samples.OPENVINO, 1, 1).lane,
                settings={"INFERENCE_PRECISION_HINT": "f32", "ATTENTION_BACKEND": "SDPA", "THREADS": n},
            ),
        )
        for n in range(8)
    ]
    return samples.measurement(*lanes, suite=dataclasses.replace(samples.SUITE, cases=(samples.CHAT,)))


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_report_fits_and_is_accessible(chromium, tmp_path, width, scheme):
    context = chromium.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True
    )
    page = context.new_page()
    for name, sample in (("long", long_names()), ("sweep", samples.swept()), ("clear", samples.clear())):
        path = tmp_path / f"{name}.html"
        path.write_text(report(sample, beside=[samples.unclear()]), encoding="utf-8")
        page.goto(path.as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
    assert page.locator("svg rect.ms-fill").count() > 0
    assert serious(page) == []
    context.close()


def test_case_names_may_be_odd():
    """A person's own case may carry any name."""
    case = Case("a<b> \"c\" 'd'", "T<i>", "own", 10, 8, "text")
    odd = samples.measurement(
        samples.lane(samples.OPENVINO, 10, 100, cases=(case,)),
        suite=dataclasses.replace(samples.SUITE, name="own", cases=(case,)),
    )
    assert "T<i>" not in report(odd, private=True)
    assert "a<b>" not in report(odd, private=True)


def test_a_prompt_that_is_taken_whole_is_as_long_as_the_lanes_counted_it():
    """“0 → 128 tokens” stood at a person's own prompts."""
    clear = samples.clear()
    cases = tuple(dataclasses.replace(case, prompt_tokens=0) for case in clear.suite.cases)
    text = text_of(report(dataclasses.replace(clear, suite=dataclasses.replace(clear.suite, cases=cases))))
    assert "Short chat · 128 → 128 tokens" in text
    assert " 0 → " not in text
    assert lengths(cases[0]) == "whole prompt → 128"


def test_a_repeat_that_was_done_again_got_another_prompt_on_purpose():
    """The report said that the lanes' token ids differ as soon as one repeat of one lane had been disturbed."""
    clear = samples.clear()
    first, *others = clear.lanes
    again = dataclasses.replace(first.repeats[0], attempt=2, prompt_sha256="c" * 64)
    disturbed = dataclasses.replace(first.repeats[0], disturbed=True)
    redone = dataclasses.replace(first, repeats=(disturbed, again, *first.repeats[1:]))

    def said(*lanes):
        text = text_of(report(dataclasses.replace(clear, lanes=lanes)))
        return text.partition("hashes of their token ids")[2].partition("How the figures")[0]

    assert "differ" not in said(redone, *others)
    assert " 1, attempt 2 counts " in text_of(report(dataclasses.replace(clear, lanes=(redone, *others))))
    assert "cccccccccccc…" in said(redone, *others)
    other = dataclasses.replace(disturbed, prompt_sha256="d" * 64)
    assert "differ" in said(dataclasses.replace(first, repeats=(other, *first.repeats[1:])), *others)
