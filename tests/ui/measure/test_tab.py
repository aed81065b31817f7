"""The Measure tab in a real browser, on real workers without a library: start, watch, leave, come back, use, save."""

import csv
import dataclasses
import json
from functools import partial
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from engines.environments.environments import Environments
from engines.hardware import machine_facts
from engines.measure import document
from engines.measure.session import Session
from engines.models.library import ModelLibrary
from engines.runtime.manager import EngineManager
from storage.measurements import Measurements
from storage.store import Store
from tests.helpers.measuring import Told, Weights
from tests.ui.accessibility import serious
from tests.ui.conftest import SPECS
from tests.ui.measure import samples
from tests.ui.test_tabs import open_tab
from ui.chat.turns import Turns
from ui.measure.desk import Desk
from ui.page import build
from ui.theme import launch_options

expect.set_options(timeout=20_000)  # a busy machine answers late
FAST, SLOW, CRASHES = "echo/CPU/100", "echo-two/CPU/20", "bad/CPU/crash-in-reply"


@dataclasses.dataclass
class Served:
    address: str
    desk: Desk
    store: Store
    suite: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The whole page; a session waits for nothing, and the machine is quiet and reads 10 GB/s."""
    folder = tmp_path_factory.mktemp("measure-tab")
    store, library = Store(folder / "arena.sqlite3"), ModelLibrary(folder)
    environments, measurements = Environments(folder), Measurements(store)
    manager = EngineManager(folder, Weights(10_000_000), environments, specs=SPECS, tuned=measurements.tuned)
    session = partial(Session, surroundings=Told(), measure_bandwidth=lambda size: 10e9, cooldown_s=0.0)
    desk = Desk(manager, measurements, machine_facts, make_session=session)
    turns = Turns(manager, store, machine_facts)
    demo = build(manager, store, turns, library, environments, desk=desk)
    _, address, _ = demo.launch(
        server_name="127.0.0.1", quiet=True, prevent_thread_lock=True, **launch_options()
    )
    manager.availability()
    suite = folder / "diary.jsonl"
    cases = (
        {"prompt": "Dear diary. " * 40, "prompt_tokens": 64, "new_tokens": 24, "name": "My secret case"},
    )
    suite.write_text("".join(json.dumps(case) + "\n" for case in cases), encoding="utf-8")
    yield Served(address, desk, store, suite)
    desk.close()
    demo.close(verbose=False)
    manager.shutdown()
    store.close()


def measure_tab(new_page, served, **options) -> Page:
    page = new_page(served.address, **options)
    page.locator("#composer").wait_for()
    open_tab(page, "Measure")
    expect(page.locator("#measure-lanes input").first).to_be_visible(timeout=20_000)
    return page


def choose(page: Page, served: Served, *lanes: str, repeats: int = 2) -> None:
    page.locator("#measure-none").click()
    expect(page.locator("#measure-lanes input:checked")).to_have_count(0)
    for lane in lanes:
        page.locator("#measure-lanes label", has_text=lane).locator("input").check()
    page.locator("#measure-repeats input").fill(str(repeats))
    page.locator("#measure-repeats input").press("Tab")
    page.locator("#measure-suite label", has_text="Own file").click()
    upload(page, "#measure-suite-file", served.suite)
    expect(page.locator("#measure-about")).to_contain_text("My secret case 64 → 24")


def upload(page: Page, where: str, path: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.locator(where).click()
    chooser.value.set_files(path)


def button(page: Page, act: str):
    return page.locator(f"#measure [data-act={act}]")


def state(page: Page):
    return page.locator("#measure .ms-progress [role=status]")


@pytest.fixture(scope="module")
def measured(served):
    """One measurement, run once for all tests that only look: a fast lane, a slow one, one that crashes."""
    from engines.measure import suites
    from engines.protocol import Target

    suite = suites.with_repeats(suites.from_file(served.suite), 3)
    targets = [Target.parse(spelling, "demo") for spelling in (FAST, SLOW, CRASHES)]
    served.desk.start(
        "demo",
        targets,
        dataclasses.replace(suite, passes=("quality", "speed"), instruction_tokens=4),
        keep_loaded=True,
    )
    assert served.desk.wait(120)
    return served.desk.session.measurement


def test_before_a_measurement_lanes_and_time_are_said(new_page, served):
    page = measure_tab(new_page, served)
    lanes = page.locator("#measure-lanes label")
    expect(lanes.filter(has_text=FAST)).to_be_visible()
    expect(lanes.filter(has_text="absent")).to_have_count(0)
    estimate = page.locator("#measure-estimate")
    expect(estimate).to_contain_text("About")
    expect(estimate).to_contain_text("Never run here")
    page.locator("#measure-none").click()
    expect(estimate).to_contain_text("Choose one lane or more")
    page.locator("#measure-weights > button").click()
    coarse = page.locator("#measure-other label", has_text="echo/CPU/100-coarse")
    coarse.locator("input").check()
    expect(estimate).to_contain_text("for 1 lane")
    page.locator("#measure-none").click()
    expect(page.locator("#measure-other input:checked")).to_have_count(0)
    expect(estimate).to_contain_text("Choose one lane or more")
    page.locator("#measure-start").click()
    expect(page.locator(".toast-body")).to_contain_text("No backend is chosen")
    page.locator("#measure-suite label", has_text="Sweep").click()
    expect(page.locator("#measure-about")).to_contain_text("Depth 4,096")


def test_a_measurement_outlives_the_tab_pauses_stops_and_goes_on(new_page, served):
    page = measure_tab(new_page, served)
    choose(page, served, FAST)
    page.locator("#measure-start").click()
    button(page, "pause").click()
    expect(state(page)).to_have_text("paused", timeout=60_000)
    expect(page.locator(".ms-progress")).to_contain_text("Still to do")
    page.close()
    page = measure_tab(new_page, served)
    expect(state(page)).to_have_text("paused")
    button(page, "go-on").click()
    expect(state(page)).to_have_text("measuring")
    button(page, "stop").click()
    expect(state(page)).to_have_text("stopped", timeout=60_000)
    assert served.desk.wait(20)
    stopped = served.desk.session.measurement
    button(page, "resume").first.click()
    expect(state(page)).to_have_text("measuring")
    assert served.desk.session.measurement.id == stopped.id
    button(page, "stop").click()
    expect(state(page)).to_have_text("stopped", timeout=60_000)
    assert served.desk.wait(20)


def test_a_verdict_is_shown_used_and_shown_in_compare(new_page, served, measured):
    page = measure_tab(new_page, served)
    page.locator("#measure").get_by_role("article", name="Short chat").wait_for()
    lane = page.locator("#measure .ms-lanes tr", has_text=CRASHES)
    expect(lane).to_contain_text("failed")
    expect(lane).to_contain_text("ended unexpectedly")
    card = page.locator("#measure").get_by_role("article", name="Short chat")
    lead = json.loads(document.dumps(measured, "short-chat"))["verdict"]
    expect(card).to_contain_text({"clear": "clear winner", "only": "only one"}.get(lead["confidence"], "no"))
    assert lead["winner"] == FAST
    card.locator("[data-act=use]").click()
    expect(card).to_contain_text("in use")
    assert served.desk.measurements.preferred("demo") == FAST
    open_tab(page, "Compare")
    expect(page.locator("#panel-1 .ph-target")).to_contain_text("CPU · 100")
    page.reload()
    expect(page.locator("#panel-1 .ph-target")).to_contain_text("CPU · 100")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_measurement_is_accessible_and_fits(new_page, served, measured, width, scheme):
    page = measure_tab(new_page, served, width=width, scheme=scheme)
    page.locator("#measure .ms-grouped").wait_for()
    page.locator("#measure-files > button").click()
    page.evaluate("document.querySelectorAll('#measure details').forEach(each => each.open = true)")
    page.wait_for_timeout(400)
    assert serious(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("kind", ["HTML page", "Markdown", "CSV", "JSON", "JSON Lines"])
def test_reports_of_every_kind_and_nothing_private_in_them(new_page, served, measured, kind):
    page = measure_tab(new_page, served)
    page.locator("#measure .ms-grouped").wait_for()
    page.locator("#measure-files > button").click()
    page.get_by_label("Report as").click()
    page.locator("ul[role=listbox] li[role=option]").filter(has_text=kind).first.click()
    with page.expect_download() as download:
        page.locator("#measure-save").click()
    text = Path(download.value.path()).read_text(encoding="utf-8-sig")
    assert "diary" not in text
    assert "secret case" not in text
    if kind == "JSON":
        assert document.loads(text).lane(FAST).repeats
    elif kind == "CSV":
        assert {row["lane"] for row in csv.DictReader(text.splitlines())} >= {FAST, SLOW}
    elif kind == "JSON Lines":
        assert all(json.loads(line)["avg_ts"] > 0 for line in text.splitlines())
    else:
        assert FAST in text


def test_others_measurements_come_in_and_stand_beside(new_page, served, measured, tmp_path):
    page = measure_tab(new_page, served)
    page.locator("#measure .ms-grouped").wait_for()
    page.locator("#measure-files > button").click()
    theirs = tmp_path / "theirs.json"
    theirs.write_text(document.dumps(dataclasses.replace(samples.clear(), id="9" * 32)), encoding="utf-8")
    upload(page, "#measure-import", theirs)
    expect(page.locator("#measure .ms-lanes")).to_contain_text("openvino-genai/NPU/int4")
    expect(page.locator("#measure [data-act=use]")).to_have_count(0)
    page.get_by_label("Compare with").click()
    page.locator("ul[role=listbox] li[role=option]").filter(has_text="demo").first.click()
    expect(page.locator("section[aria-label^='Beside']")).to_contain_text("different models")
    broken = tmp_path / "broken.json"
    broken.write_text("{}", encoding="utf-8")
    upload(page, "#measure-import", broken)
    expect(page.locator(".toast-body").last).to_contain_text("not a measurement")
    bench = tmp_path / "bench.json"
    row = {"n_prompt": 0, "n_gen": 128, "avg_ts": 17.5, "stddev_ts": 0.1, "model_type": "phi Q4_0"}
    bench.write_text(json.dumps([row]), encoding="utf-8")
    upload(page, "#measure-import", bench)
    expect(page.locator("section[aria-label='Other benchmarks']")).to_contain_text("17.5")
    button(page, "show").first.click()
    expect(page.locator("section[aria-label='Other benchmarks']")).to_have_count(0)


def test_a_lane_is_tuned_by_its_button_stopped_chosen_and_taken_back(new_page, served, measured):
    page = measure_tab(new_page, served)
    if served.desk.session.measurement.id != measured.id:
        page.locator(f"#measure [data-act=show][data-value='{measured.id}']").click()
    row = page.locator("#measure .ms-lanes tr", has_text=FAST)
    target, kept = measured.lane(FAST).lane.target, served.desk.measurements
    kept.keep_tuning(target, {"pace": "300"}, job="prefill")
    row.locator("[data-act=tune-prefill]").click()
    row.locator("[data-act=stop-tuning]").click()
    expect(row).to_contain_text("pace=300 stays", timeout=60_000)
    assert kept.tuned(target) == {"pace": "300"}
    row.locator("[data-act=tune-decode]").click()
    expect(row).to_contain_text("in use: tuned for long answers: pace=400", timeout=90_000)
    expect(row).to_contain_text("kept, tuned for long prompts: pace=300")
    assert kept.tuned(target) == {"pace": "400"}
    row.locator("[data-act=use-tuning-prefill]").click()
    expect(row).to_contain_text("in use: tuned for long prompts")
    assert kept.tuned(target) == {"pace": "300"}
    for job in ("prefill", "decode"):
        row.locator(f"[data-act=untune-{job}]").click()
        expect(row.locator(f"[data-act=untune-{job}]")).to_have_count(0)
    assert kept.tuned(target) == {}
