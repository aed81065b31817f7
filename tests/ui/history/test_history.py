"""The History and Trends tabs in a real browser, on a real history."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
import pytest
from playwright.sync_api import Page, expect

from engines.protocol import Failed, Target
from storage.exchange.exports import export_selection
from storage.records import Filter
from storage.store import Store
from tests.storage.filling import CPU, MACHINE, OTHER, run, turn
from ui.history import tab as history_tab
from ui.history import trends_tab
from ui.theme import launch_options

expect.set_options(timeout=20_000)  # a busy CI machine answers late
NASTY = "<img src=https://evil.example/x onerror=alert(1)><script>window.hacked = 1</script> \x00 \ud800"


@dataclass
class Served:
    address: str
    store: Store


@contextmanager
def serving(folder: Path) -> Iterator[Served]:
    """The two tabs alone, over a history of 43 conversations."""
    store = Store(folder / "arena.sqlite3")
    fill(store)
    with gr.Blocks(analytics_enabled=False, fill_width=True) as demo:
        with gr.Tabs():
            with gr.Tab("History"):
                history = history_tab.build(store)
            with gr.Tab("Trends"):
                trends_tab.build(store)
        opened = gr.Textbox(label="To continue")
        count = gr.Number(0, label="Times")
        history.open_in_compare.change(
            lambda conversation_id, times: (conversation_id, times + bool(conversation_id)),
            [history.open_in_compare, count],
            [opened, count],
        )
    _, address, _ = demo.launch(
        server_name="127.0.0.1", quiet=True, prevent_thread_lock=True, **launch_options()
    )
    yield Served(address, store)
    demo.close(verbose=False)
    store.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Iterator[Served]:
    """For tests that leave the history as it was."""
    with serving(tmp_path_factory.mktemp("history")) as served:
        yield served


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """For tests that change it."""
    with serving(tmp_path) as served:
        yield served


def fill(store: Store) -> None:
    """Forty plain conversations, then a voted one, one that failed, and a long one with two panels."""
    for number in range(40):
        run(
            store,
            turn(store, store.start_conversation(f"Plain {number}"), f"question {number}"),
            "answer",
            panel=1,
        )
    voted = store.start_conversation("Voted")
    voted_turn = turn(store, voted, "Which is best?")
    run(store, voted_turn, "this one", panel=1)
    run(store, voted_turn, "that one", panel=2, target=OTHER, contended=True)
    store.vote(voted_turn, 2, blind=True)
    failed = store.start_conversation()
    npu = Target("intel-npu", "NPU", "int4")
    error = Failed("crashed", "The worker ended.", "Send it again.", "log tail", -9)
    run(store, turn(store, failed, NASTY), NASTY, panel=1, target=npu, failed=error)
    long = store.start_conversation("A long talk")
    for number in range(35):
        turn_id = turn(store, long, f"Prompt {number} about zebras" if number == 3 else f"Prompt {number}")
        run(store, turn_id, f"**Reply** {number}", panel=1)
        run(
            store,
            turn_id,
            "other",
            panel=2,
            target=OTHER,
            machine={**MACHINE, "power": "battery" if number > 20 else "mains"},
        )


def items(page: Page):
    return page.locator(".hist-item")


def open_conversation(page: Page, title: str) -> None:
    items(page).filter(has_text=title).first.click()
    expect(page.locator("#history-conversation h2")).to_contain_text(title)


def choose(page: Page, label: str, option: str) -> None:
    page.get_by_label(label, exact=True).click()
    page.locator("ul[role=listbox] li[role=option]").filter(
        has_text=re.compile(f"^\\W*{re.escape(option)}\\W*$")
    ).click()


@pytest.fixture
def page(request, new_page) -> Page:
    """The page of `served` where the test asks for that, else of `shared`."""
    source = request.getfixturevalue("served" if "served" in request.fixturenames else "shared")
    page = new_page(source.address)
    expect(items(page)).to_have_count(30)
    return page


def test_the_list_is_paged_newest_first(page):
    expect(items(page).first).to_contain_text("A long talk")
    expect(page.locator("#history-position")).to_contain_text("1–30 of 43")
    expect(page.get_by_role("button", name="Newer")).to_be_disabled()
    page.get_by_role("button", name="Older").click()
    expect(items(page)).to_have_count(13)
    expect(items(page).last).to_contain_text("Plain 0")
    expect(page.get_by_role("button", name="Older")).to_be_disabled()
    page.get_by_role("button", name="Newer").click()
    expect(items(page).first).to_contain_text("A long talk")


def test_search_as_you_type(page):
    search = page.get_by_label("Search prompts and replies")
    search.press_sequentially("zeb", delay=20)
    expect(items(page)).to_have_count(1)
    expect(items(page).locator("mark")).to_have_text("zeb")
    search.fill('"NEAR( *')
    expect(page.locator(".hist-empty").first).to_contain_text("Nothing fits")
    search.fill("")
    expect(items(page)).to_have_count(30)


def test_filters_narrow_the_list(page):
    page.get_by_role("button", name="Filters").click()
    choose(page, "Engine", "intel-npu")
    expect(items(page)).to_have_count(1)
    choose(page, "Outcome", "Finished")
    expect(items(page)).to_have_count(0)
    page.get_by_role("button", name="Clear filters").click()
    expect(items(page)).to_have_count(30)
    choose(page, "Vote", "Voted on")
    expect(items(page)).to_have_count(1)
    page.get_by_role("button", name="Clear filters").click()
    expect(items(page)).to_have_count(30)  # or it would clear the day, too
    page.get_by_label("To day").fill("2001-01-01")
    expect(items(page)).to_have_count(0)
    page.get_by_label("To day").fill("soon")
    expect(items(page)).to_have_count(30)


def test_a_day_that_is_none_is_told_instead_of_passed_over(page):
    page.get_by_role("button", name="Filters").click()
    day, notice = page.get_by_label("From day"), page.locator("#history-notice")
    day.fill("31.12.2026")
    expect(notice).to_contain_text("“31.12.2026” is not a day")
    day.fill("2099-1-5")
    expect(items(page)).to_have_count(0)
    expect(notice.locator(".notice")).to_have_count(0)


def test_a_conversation_opens_as_it_was_and_nothing_in_it_runs(page):
    items(page).nth(1).click()
    detail = page.locator("#history-conversation")
    expect(detail.locator(".hist-prompt")).to_contain_text("<script>window.hacked = 1</script>")
    expect(detail.locator(".failure")).to_contain_text("The worker ended.")
    expect(detail.locator(".failure")).to_contain_text("Send it again.")
    expect(detail.locator(".stamp", has_text="failed")).to_be_visible()
    assert page.evaluate("window.hacked") is None
    open_conversation(page, "Voted")
    expect(detail.locator(".hist-run")).to_have_count(2)
    winner = detail.locator(".hist-run").nth(1)
    expect(winner).to_contain_text("voted best")
    expect(winner).to_contain_text("contended")
    expect(winner.locator("dd").first).to_have_text(re.compile("200 ms|0.200 s"))
    expect(items(page).filter(has_text="Voted")).to_have_attribute("aria-current", "true")


def test_long_conversations_show_their_end_first(page):
    open_conversation(page, "A long talk")
    turns = page.locator("#history-conversation .hist-turn")
    expect(turns).to_have_count(30)
    expect(turns.first).to_contain_text("Prompt 5")
    expect(turns.first.locator(".md strong")).to_have_text("Reply")
    page.get_by_role("button", name="Show all turns").click()
    expect(turns).to_have_count(35)


def test_continue_tells_which_conversation_also_twice(page, shared):
    open_conversation(page, "Voted")
    (found,) = shared.store.conversations(Filter(query="best")).summaries
    for times in (1, 2):
        page.get_by_role("button", name="Continue in Compare").click()
        expect(page.get_by_label("To continue")).to_have_value(found.id)
        expect(page.get_by_label("Times")).to_have_value(str(times))


def test_rename_and_pin(page, served):
    open_conversation(page, "Plain 39")
    page.get_by_label("Title").fill("About <b>nothing</b>")
    page.get_by_role("button", name="Rename").click()
    expect(page.locator("#history-conversation h2")).to_have_text("About <b>nothing</b>")
    expect(items(page).filter(has_text="About <b>nothing</b>")).to_have_count(1)
    page.get_by_role("button", name="Pin", exact=True).click()
    expect(items(page).first).to_contain_text("About <b>nothing</b>")
    expect(page.get_by_role("button", name="Unpin")).to_be_visible()
    assert served.store.conversations().summaries[0].pinned


def test_delete_and_undo(page, shared):
    open_conversation(page, "Voted")
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.locator("#history-position")).to_contain_text("of 42")
    expect(page.get_by_text("“Voted” was deleted")).to_be_visible()
    expect(page.get_by_text("Choose a conversation")).to_be_visible()
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#history-position")).to_contain_text("of 43")
    expect(page.locator("#history-conversation h2")).to_have_text("Voted")
    assert shared.store.conversations().total == 43


def test_a_conversation_can_be_saved(page):
    open_conversation(page, "Voted")
    for button, name in (("Save as Markdown", "voted.md"), ("Save as JSON", "voted.json")):
        with page.expect_download() as download:
            page.get_by_role("button", name=button).click()
        assert download.value.suggested_filename.endswith(name)
        text = Path(download.value.path()).read_text(encoding="utf-8")
        assert "that one" in text
    assert len(json.loads(text)["runs"]) == 2


@pytest.mark.parametrize(
    ("choice", "ending", "start"),
    [
        ("CSV, for spreadsheets", ".csv", b"\xef\xbb\xbfrun_id,"),
        ("JSON Lines, complete", ".jsonl", b'{"format": "backend-arena"'),
        ("Parquet, for analysis", ".parquet", b"PAR1"),
        ("Whole database (SQLite)", ".sqlite3", b"SQLite format 3"),
    ],
)
def test_a_selection_can_be_exported(page, choice, ending, start):
    if ending == ".parquet":
        pytest.importorskip("duckdb", reason="Parquet needs duckdb")
    page.get_by_label("Search prompts and replies").fill("which best")
    expect(items(page)).to_have_count(1)
    page.get_by_role("button", name="Export and import").click()
    choose(page, "Format", choice)
    with page.expect_download() as download:
        page.get_by_role("button", name="Export", exact=True).click()
    assert download.value.suggested_filename.endswith(ending)
    content = Path(download.value.path()).read_bytes()
    assert content.startswith(start)
    if ending == ".jsonl":
        assert content.count(b"\n") == 2


def test_another_machines_export_can_be_brought_in(page, served, tmp_path):
    other = Store(tmp_path / "other" / "arena.sqlite3")
    run(
        other,
        turn(other, other.start_conversation("From afar"), "far away"),
        "hello",
        machine={"name": "laptop"},
    )
    export_selection(other.file, Filter(), tmp_path / "other.jsonl", "jsonl")
    other.close()
    page.get_by_role("button", name="Export and import").click()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Import a file").click()
    chooser.value.set_files(tmp_path / "other.jsonl")
    expect(page.get_by_text("Imported 1 run in 1 conversation from laptop.")).to_be_visible()
    expect(page.locator("#history-position")).to_contain_text("of 44")
    expect(items(page).filter(has_text="From afar")).to_contain_text("from laptop")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Import a file").click()
    (tmp_path / "holiday.txt").write_text("dear diary")
    chooser.value.set_files(tmp_path / "holiday.txt")
    expect(page.get_by_text("holiday.txt is neither a history database nor a JSON export")).to_be_visible()


def test_privacy_settings(page, served):
    page.get_by_role("button", name="Privacy").click()
    page.get_by_label("Keep prompts and replies").uncheck()
    choose(page, "Keep conversations", "90 days")
    expect(page.get_by_text("0 older conversations removed.")).to_be_visible()
    assert served.store.get_setting("keep_text") is False
    assert served.store.get_setting("retention_days") == 90
    page.get_by_role("button", name="Delete everything").click()
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("button", name="Yes, for good")).to_be_hidden()
    assert served.store.conversations().total == 43
    page.get_by_role("button", name="Delete everything").click()
    page.get_by_role("button", name="Yes, for good").click()
    expect(page.locator(".hist-empty").first).to_contain_text("No conversation here yet")
    assert served.store.conversations().total == 0


def test_trouble_is_told(page, shared):
    other = sqlite3.connect(shared.store.path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    open_conversation(page, "Voted")
    page.get_by_role("button", name="Pin", exact=True).click()
    expect(page.get_by_text("Another program is holding the history")).to_be_visible()
    other.execute("ROLLBACK")
    other.close()
    expect(page.locator("#history-conversation h2")).to_have_text("Voted")


def test_trends_show_two_targets_side_by_side(page):
    page.get_by_role("tab", name="Trends").click()
    left, right = page.locator("#trends-a"), page.locator("#trends-b")
    expect(left.locator("svg")).to_have_count(2)
    expect(right.locator("svg")).to_have_count(2)
    expect(left.locator("svg").first).to_have_attribute(
        "aria-label", re.compile(r"Decode rate.* median 15\.0 tok/s")
    )
    choose(page, "Target B", OTHER.spelling)
    expect(right.locator(".trend-legend").first).to_contain_text("of 35 runs")
    expect(right.locator(".trend-marks").first).to_contain_text("power: mains → battery")
    right.locator("summary").first.click()
    expect(right.locator("table").first).to_contain_text("Median")
    assert CPU.spelling in page.get_by_label("Target A").input_value()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(shared, new_page, width, scheme):
    page = new_page(shared.address, width, 800, scheme)
    open_conversation(page, "A long talk")
    for tab in ("History", "Trends"):
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
