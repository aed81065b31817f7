"""The Compare tab in a real browser, on real worker processes with the echo engine."""

import re

from playwright.sync_api import expect

from tests.ui.compare.driver import OPTION, Driver, words
from tests.ui.conftest import serve_page

SLOW = "5"
"""Precision of the echo that writes 5 tokens a second: slow enough for a test on a busy machine."""


def test_one_prompt_is_answered_in_every_panel(driver):
    page = driver(("echo", "fast"), ("echo-two", "fast"), ("echo-three", "fast"))
    page.ask("one prompt for all three")
    assert page.panels() == [1, 2, 3]
    for number in (1, 2, 3):
        assert page.reply(number) == "one prompt for all three"
        assert page.chip(number) == "Ready"
        ttft, rate, tokens, elapsed = page.figures(number)
        assert ttft.endswith("ms")
        assert rate != "–"
        assert int(tokens) > 3
        assert elapsed.endswith("s")
        assert "TTFT" in page.panel(number).locator(".numbers").inner_text()


def test_text_and_figures_grow_while_it_runs(driver):
    page = driver(("echo", SLOW))
    page.send(words(30))
    page.wait_running()
    seen = set()
    for _ in range(10):
        seen.add((page.reply(1), tuple(page.figures(1))))
        page.page.wait_for_timeout(250)
    assert page.chip(1) == "Writing"
    assert len(seen) >= 5
    page.page.keyboard.press("Escape")
    page.wait_done()


def test_stop_ends_one_panel_and_leaves_the_others(driver):
    page = driver(("echo", SLOW), ("echo-two", SLOW))
    page.send(words(10))
    page.page.wait_for_function(
        "document.querySelectorAll('.now .growing .md p:not(.waiting-text)').length == 2"
    )
    page.page.click("#stop-1")
    page.page.wait_for_function(
        "document.querySelector('#panel-1 .now .turn').dataset.phase == 'stopped'", timeout=3000
    )
    assert page.phase(2) == "running"
    page.wait_done()
    assert page.phase(2) == "finished"
    assert "stopped" in page.panel(1).locator(".numbers").inner_text()
    assert page.reply(1)
    assert page.reply(2).startswith(page.reply(1))


def test_escape_stops_everything_and_shift_enter_makes_a_line(driver):
    page = driver(("echo", SLOW), ("echo-two", SLOW))
    page.type("first")
    page.page.press("#prompt textarea", "Shift+Enter")
    page.page.keyboard.type(words(30))
    page.page.press("#prompt textarea", "Enter")
    page.wait_running()
    page.page.keyboard.press("Escape")
    page.wait_done()
    assert {page.phase(1), page.phase(2)} == {"stopped"}
    assert page.prompts(1)[0].startswith("first\nword0")


def test_a_failing_panel_says_why_and_the_others_go_on(driver):
    page = driver(("echo", "fast"), ("bad", "crash-on-load"))
    page.ask("hello there")
    assert page.reply(1) == "hello there"
    failure = page.panel(2).locator(".failure")
    assert "exit code 7" in failure.inner_text()
    failure.locator("summary").click()
    assert "about to fall over" in failure.locator("pre").inner_text()
    assert page.chip(2) == "Failed"


def test_what_cannot_run_is_listed_with_its_reason_and_remedy(driver, arena):
    page = driver(("echo", "fast"), ("absent", "fast"))
    assert page.chip(2) == "Not available"
    reason = arena.manager.availability()["absent"].reason
    assert reason.split()[0] in page.panel(2).inner_text()
    page.open_setup(1)
    page.page.click("#engine-1 input")
    assert "Absent engine — not available" in page.page.locator(OPTION).all_inner_texts()[-1]
    page.pick("Echo")
    page.ask("only the able one answers")
    assert page.reply(1) == "only the able one answers"
    assert page.phase(2) is None


def test_panels_come_and_go_without_losing_a_conversation(driver):
    page = driver(("echo", "fast"), ("echo-two", "fast"))
    page.ask("remember this")
    page.open_setup(2)
    page.page.click("#remove-2")
    page.page.wait_for_selector("#panel-2", state="hidden")
    assert page.panels() == [1]
    page.ask("only one now")
    page.page.click("#add-panel")
    page.page.wait_for_selector("#panel-2", state="visible")
    page.settle()
    page.until(lambda: page.prompts(2), ["remember this"])
    page.until(lambda: page.prompts(1), ["remember this", "only one now"])


def test_follow_ups_to_one_panel_only(driver, arena):
    page = driver(("echo", "fast"), ("echo-two", "fast"))
    page.ask("to both")
    page.page.click("#send-to input")
    page.pick("Only 2")
    page.ask("to the second")
    page.until(lambda: page.prompts(1), ["to both"])
    page.until(lambda: page.prompts(2), ["to both", "to the second"])


def test_retry_continue_and_edit(driver):
    page = driver(("echo", SLOW))
    page.send(words(30))
    page.wait_running()
    page.page.click("#stop-1")
    page.wait_done()
    first = page.reply(1)
    page.page.click("#retry-1")
    page.wait_running()
    page.page.wait_for_timeout(600)
    page.page.click("#stop-1")
    page.wait_done()
    assert len(page.prompts(1)) == 1
    page.page.click("#continue-1")
    page.wait_running()
    page.page.click("#stop-1")
    page.wait_done()
    assert first
    page.page.click("#edit-last")
    page.page.wait_for_function("document.querySelector('#prompt textarea').value.startsWith('word0')")
    page.page.wait_for_selector("#notices .notice:has-text('editing the last prompt')")
    page.ask("better")
    page.until(lambda: page.prompts(1), ["better"])
    assert page.reply(1) == "better"


def test_in_turn_runs_one_after_the_other_and_is_not_contended(driver):
    page = driver(("echo", SLOW), ("echo-two", SLOW))
    page.page.get_by_label("In turn").check()
    page.send("now one by one")
    page.wait_running()
    assert page.page.locator(".now .growing .md p:not(.waiting-text)").count() == 1
    page.wait_done()
    summary = page.page.locator("#summary")
    # Whether other programs left this machine alone meanwhile is not the test's to say.
    expect(summary.locator(".stamp.fair, .stamp.warn")).to_have_text(
        re.compile("each alone on the machine|disturbed"), timeout=60_000
    )
    expect(summary.locator(".stamp.contended")).to_have_count(0)
    page.page.locator(".now .seen-claimed summary").first.click()
    expect(page.page.locator(".now .seen-claimed[open] li").first).to_have_text("Asked for CPU.")
    strip = page.page.locator("#live-strip")
    expect(strip.locator("figcaption b").first).to_have_text("Processor")
    expect(strip.locator(".mark.ends").first).to_be_attached()
    expect(strip).to_contain_text("echo/CPU/")
    page.page.get_by_label("Together").check()
    page.ask("both at once")
    expect(page.page.locator("#summary .stamp.contended")).to_be_visible(timeout=60_000)


def test_summary_chart_table_and_word_difference(driver):
    page = driver(("echo", "fast"), ("echo-two", "fast"))
    page.ask("the same words in both")
    summary = page.page.locator("#summary")
    expect(summary).to_contain_text("identical, word for word")
    assert "Started first" in summary.inner_text()
    assert summary.locator("svg polyline").count() == 2
    assert summary.locator("tbody tr").count() == 2
    page.page.click("#diff > button")
    page.page.wait_for_selector("#diff-text .same")


def test_new_conversation_empties_the_page_and_keeps_the_old_one(driver, arena):
    page = driver(("echo", "fast"))
    page.ask("before")
    old = page.page.url
    assert "?c=" in old
    page.page.click("#new-conversation")
    page.page.wait_for_function("!document.querySelector('.now .turn')")
    page.settle()
    assert "?c=" not in page.page.url
    page.page.goto(old)
    page = Driver(page.page)
    page.until(lambda: page.prompts(1), ["before"])


def test_a_reload_in_mid_stream_finds_the_running_reply(driver):
    page = driver(("echo", SLOW))
    page.send(words(150))
    page.wait_running()
    page.page.wait_for_function("location.search.includes('c=')")
    page.page.reload()
    page = Driver(page.page)
    page.wait_running()
    before = page.reply(1)
    page.page.wait_for_timeout(700)
    assert len(page.reply(1)) > len(before)
    page.page.click("#stop-1")
    page.wait_done()
    assert page.phase(1) == "stopped"


def test_after_a_restart_a_conversation_looks_the_same(driver, arena):
    page = driver(("echo", SLOW), ("bad", "raise"))
    page.ask("keep this")
    shown = page.panel(1).locator(".turn").inner_text()
    failed = page.panel(2).locator(".failure").inner_text()
    demo, restarted = serve_page(arena.store.path.parent)
    try:
        page.page.goto(restarted.address + "?" + page.page.url.split("?")[1])
        page = Driver(page.page)
        assert page.panel(1).locator(".turn").inner_text() == shown
        assert page.panel(2).locator(".failure").inner_text() == failed
        page.ask("and on it goes")
        page.until(lambda: page.prompts(1), ["keep this", "and on it goes"])
    finally:
        demo.close(verbose=False)
        restarted.manager.shutdown()
        restarted.store.close()
