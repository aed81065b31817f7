"""A tab whose page the server no longer knows comes back by itself, with its conversation."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from engines.runtime.worker_process import PROJECT_ROOT
from storage.store import FILE_NAME, Store
from tests.storage.filling import run, turn
from tests.ui.compare.driver import Driver, panels_setting, words
from ui.compare import browser_tab
from ui.compare.actions import LONGEST_WAY_S, told_by_browser

KEY = "document.querySelector('#live')?.dataset.key"
"""What the page is called; one loaded anew is called something else."""


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def conversations(data_dir) -> list[list[str]]:
    """The prompts of each conversation in the log, the newest conversation first."""
    store = Store(data_dir / FILE_NAME)
    listed = store.conversations().summaries
    prompts = [[turn.prompt for turn in store.conversation(each.id).turns] for each in listed]
    store.close()
    return prompts


@pytest.fixture
def restartable(tmp_path, new_page):
    """An app on the test engines that can be killed and started again on the same port, and a tab that stays open."""
    store = Store(tmp_path / FILE_NAME)
    store.set_setting("compare.welcomed", True)
    store.set_setting("compare.panels", panels_setting(("echo", "fast"), ("echo-two", "fast")))
    store.close()
    port = free_port()
    running = []

    def restart(*options):
        for process in running:
            process.kill()
            process.wait()
        command = [sys.executable, "-m", "tests.ui.compare.served", str(tmp_path), str(port), *options]
        running.append(subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, text=True))
        assert running[-1].stdout.readline() == "served\n"

    restart()
    yield Driver(new_page(f"http://127.0.0.1:{port}/")), restart
    for process in running:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("options", [(), ("updated",)])
def test_after_a_restart_the_tab_shows_its_conversation_and_goes_on_with_it(restartable, tmp_path, options):
    tab, restart = restartable
    tab.ask("the first prompt")
    tab.type("typed, but not yet sent")
    before = tab.page.evaluate(KEY)
    restart(*options)
    tab.page.wait_for_function(f"{KEY} && {KEY} !== {json.dumps(before)}")  # it has noticed by itself
    tab.page.wait_for_function(
        "document.querySelector('#prompt textarea')?.value == 'typed, but not yet sent'"
    )
    tab.page.wait_for_selector("#panel-1 .now .reply .md >> text=the first prompt")
    tab.page.press("#prompt textarea", "Enter")
    tab.page.wait_for_function("document.querySelectorAll('#panel-1 .msg.user').length == 2")
    tab.wait_done()
    assert tab.reply(2).endswith("typed, but not yet sent")
    assert conversations(tmp_path) == [["the first prompt", "typed, but not yet sent"]]


@pytest.mark.parametrize("wait_s", [0, 1])
def test_a_prompt_sent_before_the_tab_has_noticed_is_not_lost(restartable, tmp_path, wait_s):
    """Gradio loads the page anew at some moment: the prompt goes to its conversation, or stays in the box."""
    tab, restart = restartable
    tab.ask("the first prompt")
    restart()
    tab.page.wait_for_timeout(wait_s * 1000)
    tab.send("sent at once")
    answered = "document.querySelectorAll('#panel-1 .msg.user').length == 2"
    # It is in the box on its way, too: only where it stays has it come back.
    tab.page.wait_for_function(
        f"""() => {{
            const held = document.querySelector('#live[data-loaded]')
                && document.querySelector('#prompt textarea')?.value == 'sent at once';
            window.heldSince = held ? window.heldSince || performance.now() : 0;
            return {answered} || (held && performance.now() - window.heldSince > 5000);
        }}"""
    )
    if not tab.page.evaluate(answered):
        tab.page.press("#prompt textarea", "Enter")
        tab.page.wait_for_function(answered)
    tab.wait_done()
    assert conversations(tmp_path) == [["the first prompt", "sent at once"]]
    tab.page.reload()
    tab.page.wait_for_selector("#live[data-loaded]", state="attached")
    tab.page.wait_for_timeout(1000)
    assert tab.page.input_value("#prompt textarea") == ""


def test_a_reply_of_before_the_restart_is_answered_again_and_carried_on(restartable, tmp_path):
    tab, restart = restartable
    tab.page.click("#settings > button")
    tab.page.fill("#max-new-tokens input", "5")
    tab.settle()
    tab.ask(words(20))
    cut, before = tab.reply(1), tab.runs()
    old = tab.page.evaluate(KEY)
    restart()
    tab.page.wait_for_function(f"{KEY} && {KEY} !== {json.dumps(old)}")  # it has noticed by itself
    tab.page.wait_for_selector("#live[data-loaded]", state="attached")
    tab.page.wait_for_selector(f"#panel-1 .now .reply .md >> text={cut}")
    for button, check in (
        ("#retry-1", lambda: tab.reply(1) == cut),
        ("#continue-1", lambda: tab.reply(1).startswith(cut) and len(tab.reply(1)) > len(cut)),
    ):
        tab.page.click(button)
        tab.until(lambda seen=before: tab.runs() != seen, True)
        tab.wait_done()
        assert check()
        assert tab.notices() == ""
        before = tab.runs()
    store = Store(tmp_path / FILE_NAME)
    (only,) = store.conversations().summaries
    assert sorted(run.attempt for run in store.conversation(only.id).turns[0].runs) == [1, 1, 2, 3]
    store.close()


def test_what_was_typed_survives_a_reload_and_what_was_sent_does_not_come_back(driver):
    """Gradio reloads the page by itself when it finds another server, before any question of ours has failed."""
    tab = driver(("echo", "fast"))
    typed = "document.querySelector('#prompt textarea')?.value"
    tab.type("half a prompt")
    tab.page.reload()
    tab.page.wait_for_function(f"{typed} == 'half a prompt'")
    tab.page.press("#prompt textarea", "Enter")
    tab.wait_done()
    tab.page.reload()
    tab.page.wait_for_selector("#panel-1 .now .reply .md >> text=half a prompt")
    tab.settle()
    assert tab.page.evaluate(typed) == ""


def test_an_enter_in_the_empty_box_of_a_loading_page_loses_nothing(driver):
    tab = driver(("echo", "fast"))
    tab.ask("first")
    tab.type("half a prompt")
    # What was typed is put back with the first answer to the page's questions: let that one come late.
    late = []
    tab.page.route("**/component_server/**", lambda route: late.append(route))
    tab.page.reload(wait_until="commit")
    tab.page.wait_for_function(KEY)
    tab.page.press("#prompt textarea", "Enter")
    tab.page.wait_for_timeout(2000)
    tab.page.unroute("**/component_server/**")  # lets go what was held back
    assert late
    tab.page.wait_for_function("document.querySelector('#prompt textarea')?.value == 'half a prompt'")
    tab.page.wait_for_selector("#live[data-loaded]", state="attached")
    tab.page.wait_for_timeout(1000)
    assert tab.page.input_value("#prompt textarea") == "half a prompt"


def test_a_prompt_that_never_arrived_is_put_back_however_long_the_page_loads(driver, arena, monkeypatch):
    """As after a restart: the engines are probed before it is known what runs."""
    tab = driver(("echo", "fast"))
    tab.ask("first")
    tab.page.route("**/gradio_api/run/**", lambda route: route.abort())
    tab.type("never arrived")
    tab.page.press("#prompt textarea", "Enter")
    tab.page.wait_for_function("JSON.parse(sessionStorage.getItem('backend-arena-draft'))?.handed")
    tab.page.unroute("**/gradio_api/run/**")
    probe = arena.manager.availability

    def slow(*arguments, **options):
        time.sleep(6)
        return probe(*arguments, **options)

    monkeypatch.setattr(arena.manager, "availability", slow)
    tab.page.reload()
    tab.page.wait_for_selector("#live[data-loaded]", state="attached")
    tab.page.wait_for_function("document.querySelector('#prompt textarea')?.value == 'never arrived'")


def test_a_tab_whose_page_was_forgotten_comes_back(driver, arena, new_page, monkeypatch):
    """As after an hour's sleep: the server is the same, the page is gone. A running reply is found again, too."""
    tab = driver(("echo", "5"))
    tab.send(words(15))
    tab.wait_running()
    monkeypatch.setattr(browser_tab, "MOST_PAGES", 1)
    Driver(new_page(arena.address))  # takes the only place there is
    monkeypatch.undo()
    seen = tab.reply(1)
    tab.wait_done()
    assert tab.reply(1).startswith(seen)
    assert tab.reply(1).endswith("word14")
    assert tab.phase(1) == "finished"


def start_app(data_dir, port):
    process = subprocess.Popen(
        [sys.executable, "app.py", "--no-browser", "--port", str(port), "--data-dir", str(data_dir)],
        cwd=PROJECT_ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert "Backend Arena is at" in process.stdout.readline()
    return process


@pytest.mark.skipif(os.name == "nt", reason="kill -9 is POSIX")
def test_a_tab_survives_a_killed_app_that_is_started_again(tmp_path, new_page):
    """With everything around it that the served app has: its guard knows no login of before."""
    store = Store(tmp_path / FILE_NAME)
    conversation = store.start_conversation("Kept")
    run(store, turn(store, conversation, "What was said?"), "This was said.", panel=1)
    store.close()
    port = free_port()
    first = start_app(tmp_path, port)
    second = None
    try:
        page = new_page(f"http://localhost:{port}/?c={conversation}")
        page.wait_for_selector("#panel-1 .md >> text=This was said.")
        old = page.evaluate(KEY)
        first.send_signal(signal.SIGKILL)
        first.wait()
        second = start_app(tmp_path, port)
        # Only the page loaded anew has another key: what is asked before may be asked of one that is about to go.
        page.wait_for_function(f"window.backendArena?.ask(), {KEY} && {KEY} !== {json.dumps(old)}")
        page.wait_for_selector("#live[data-loaded]", state="attached")
        page.wait_for_selector("#panel-1 .md >> text=This was said.")
        lanes = "[...document.querySelectorAll('.lane')].filter(e => e.offsetParent).length"
        before = page.evaluate(lanes)
        page.click("#add-panel")
        page.wait_for_function(f"{lanes} > {before}")  # the page answers again
        assert page.locator("#panel-1 .md >> text=This was said.").count()
    finally:
        for process in (first, second):
            if process is not None:
                process.kill()
                process.wait()


def test_the_felt_time_counts_from_the_key_press_in_the_browser(driver, arena):
    tab = driver(("echo", "fast"))
    tab.ask("warm up")
    # A slow way from the browser to the app: what is sent is held up for a good second.
    tab.page.route("**/gradio_api/run/**", lambda route: (time.sleep(1.2), route.continue_()))
    tab.ask("felt")
    (newest,) = arena.store.conversations(limit=1).summaries
    said = arena.store.conversation(newest.id).turns[-1].runs[0]
    assert 1.2 <= said.felt_ttft_s < 60
    assert said.metrics.ttft_s < 1.2


@pytest.mark.parametrize(
    "sending",
    [
        "",
        None,
        "[]",
        "{}",
        "nonsense",
        '{"pressed": "x", "conversation": 3}',
        '{"pressed": NaN, "conversation": ""}',
    ],
)
def test_what_a_browser_tells_is_not_trusted(sending):
    before = time.monotonic()
    told = told_by_browser(sending)
    assert before <= told.pressed_at <= time.monotonic()
    assert told.conversation_id == ""


def test_a_time_that_cannot_be_is_not_taken():
    now = time.monotonic()
    for pressed, taken in ((now - 1, True), (now + 100, False), (now - LONGEST_WAY_S - 5, False)):
        told = told_by_browser(json.dumps({"pressed": pressed, "conversation": "c"}))
        assert (told.pressed_at == pressed) is taken
        assert told.conversation_id == "c"
