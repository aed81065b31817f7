"""The Compare tab: first start, sets, blind votes, accessibility, hostile output, a person who presses everything."""

import random
import shutil
import threading
import warnings

import pytest
from playwright.sync_api import expect

from engines.models.library import ModelLibrary
from engines.models.model_names import DEMO_FOLDER
from engines.protocol import Target
from tests.storage.filling import run, turn
from tests.ui.accessibility import serious
from tests.ui.compare.driver import Driver, words
from ui.chat.settings import Settings
from ui.compare.model_menu import ModelMenu

HOSTILE = (
    "<script>window.hacked = 1</script> <img src=x onerror='window.hacked = 1'> "
    "![x](https://example.com/x.png) <form action='https://example.com'><button>go</button></form> "
    "<iframe src='https://example.com'></iframe> **bold**"
)


FIXED = ".figures, .panel-actions, #composer"
COUNT_SHIFTS = """() => {
  window.shifts = 0;
  const add = entry => { if (!entry.hadRecentInput) window.shifts += entry.value; };
  const count = list => list.getEntries().forEach(add);
  new PerformanceObserver(count).observe({type: 'layout-shift', buffered: false});
}"""


@pytest.mark.parametrize(
    ("width", "height", "scheme"),
    [(390, 844, "dark"), (768, 1024, "light"), (1280, 900, "dark"), (1920, 1080, "light")],
)
def test_accessible_and_whole_at_every_width(driver, width, height, scheme):
    page = driver(
        ("echo", "fast"), ("echo-two", "fast"), ("bad", "raise"), width=width, height=height, scheme=scheme
    )
    assert serious(page.page) == []
    page.open_setup(1)
    page.page.click("#settings > button")
    page.ask("# Title\n- **a** list with `code`\n\n```python\nprint(1)\n```")
    page.page.click("#diff > button")
    page.settle()
    assert serious(page.page) == []
    widest = page.page.evaluate("document.documentElement.scrollWidth")
    assert widest <= width, "the page scrolls sideways"
    stacked = len({box["y"] for box in (page.panel(n).bounding_box() for n in (1, 2, 3))})
    assert stacked == {390: 3, 768: 2}.get(width, 1)


def test_the_first_start_tells_what_is_here_and_runs_a_comparison(driver):
    page = driver(welcomed=False)
    welcome = page.page.locator("#welcome")
    expect(welcome).to_contain_text("This PC")
    expect(welcome).to_contain_text("tiny model trained for this app")
    expect(welcome).to_contain_text("1 engine not available yet")
    assert len(page.panels()) == 4
    page.page.click("#first-run")
    page.wait_done()
    assert page.reply(1)
    expect(welcome).to_be_hidden()


def test_panels_and_named_sets_are_remembered(driver, arena, new_page):
    page = driver(("echo", "fast"), ("echo-two", "fast"))
    page.choose("precision", 1, "20")
    page.page.click("#sets-button")
    page.page.fill("#set-name input", "My pair")
    page.page.press("#set-name input", "Enter")
    page.page.click("#save-set")
    expect(page.page.locator("#notices")).to_contain_text("“My pair” is saved")
    page.open_setup(2)
    page.page.click("#remove-2")
    page.page.wait_for_selector("#panel-2", state="hidden")
    again = Driver(new_page(arena.address))
    assert again.panels() == [1]
    again.page.click("#sets-button")
    again.page.wait_for_selector("#set-name input")
    again.page.click("#set-name input")
    again.pick("My pair")
    again.page.click("#use-set")
    again.page.wait_for_selector("#panel-2", state="visible")
    expect(again.panel(1).locator(".ph-sub")).to_contain_text("20")


def test_the_vote_does_not_wait_for_the_hub(driver, monkeypatch):
    """To offer a real model the Hub may have to be asked: where it does not answer, that takes seconds."""
    page = driver(("echo", "fast"), ("echo-two", "fast"))
    answered, after_turn = threading.Event(), ModelMenu.after_turn

    def slow(self, seen):
        assert answered.wait(60)
        return after_turn(self, seen)

    monkeypatch.setattr(ModelMenu, "after_turn", slow)
    try:
        page.ask("first")
        page.page.wait_for_selector("#vote", state="visible")
        assert not answered.is_set()
    finally:
        answered.set()


def test_blind_until_the_vote(driver, arena):
    page = driver(("echo", "fast"), ("echo-two", "fast"))
    page.page.get_by_label("Blind").check()
    page.page.wait_for_selector("#setup-1", state="hidden")
    page.ask("who is who")
    expect(page.page.locator("#summary")).to_contain_text("Vote first")
    shown = page.page.locator("#panels").inner_text()
    assert "Echo" not in shown
    assert "Backend A" in shown
    page.page.get_by_label("1 · Backend A").check()
    expect(page.panel(1).locator(".ph-title")).to_contain_text("cho")
    expect(page.page.locator("#summary")).to_contain_text("Started first")
    conversation = arena.store.conversation(page.page.url.split("c=")[1])
    vote = conversation.turns[-1].vote
    assert (vote.winner, vote.blind) == ("1", True)


def test_settings_an_engine_ignores_are_greyed(driver):
    page = driver(("echo", "fast"))
    page.page.click("#settings > button")
    expect(page.page.get_by_label("Temperature")).to_be_enabled()
    expect(page.page.get_by_label("Top-p")).to_be_disabled()
    expect(page.page.locator("#ignored")).to_contain_text("Top-p is not honoured by Echo")


def test_a_setting_that_makes_no_sense_is_said_and_the_prompt_kept(driver):
    page = driver(("echo", "fast"))
    page.page.click("#settings > button")
    page.settle()
    page.page.fill("#seed input, #seed textarea", "dice")
    page.settle()
    assert page.page.input_value("#seed input, #seed textarea") == "dice"
    page.send("hello")
    expect(page.page.locator("#notices")).to_contain_text("Seed: “dice” is not a number")
    assert page.page.input_value("#prompt textarea") == "hello"


def test_a_dropped_text_file_becomes_context(driver, tmp_path):
    file = tmp_path / "facts.txt"
    file.write_text("The lighthouse is red.", encoding="utf-8")
    page = driver(("echo", "fast"))
    with page.page.expect_file_chooser() as chooser:
        page.page.click("#attach")
    chooser.value.set_files(file)
    expect(page.page.locator("#detach")).to_contain_text("facts.txt")
    page.ask("What colour is it?")
    assert "The lighthouse is red." in page.prompts(1)[0]


def test_hostile_output_does_nothing(driver, arena):
    page = driver(("echo", "fast"))
    page.ask(HOSTILE)
    assert "<script>" in page.reply(1)
    assert page.page.evaluate("window.hacked") is None
    assert page.page.locator("#panel-1 :is(img, form, iframe, script)").count() == 0
    assert page.page.locator("#panel-1 .now strong").count() >= 1
    policy = page.page.request.get(arena.address).headers["content-security-policy"]
    assert "default-src 'self'" in policy


def test_a_hundred_kilobyte_line_is_shown_and_breaks_nothing(arena, new_page):
    turn = arena.turns.send("long", [(1, Target("echo", "CPU", "fast"))], Settings())
    assert turn.wait(60)
    run = turn.runs[0]
    line = "x" * 100_000
    run.fold._texts, run.fold._ended_as = [line], None  # no echo has so long a context
    page = Driver(new_page(f"{arena.address}?c={turn.conversation_id}"))
    page.until(lambda: len(page.reply(1)), len(line))
    assert page.page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_a_long_reply_is_followed_unless_the_person_scrolled_up(driver):
    page = driver(("echo", "20"))
    page.send(words(60).replace(" ", "\n"))
    page.wait_running()
    box = "document.querySelector('#scroll-1')"
    at_end = f"{box}.scrollHeight - {box}.scrollTop - {box}.clientHeight"
    page.page.wait_for_function(f"{box}.scrollHeight > 700 && {at_end} < 60")
    # Our own scroll is told late, when the reply has grown by more than what counts as near.
    page.page.evaluate(
        "(box) => { const more = document.createElement('div'); more.style.height = '300px'; more.id = 'more';"
        " box.scrollTop = box.scrollHeight; box.lastElementChild.append(more);"
        " box.dispatchEvent(new Event('scroll')); }",
        page.page.query_selector("#scroll-1"),
    )
    page.page.wait_for_function(f"document.querySelector('#more') && {at_end} < 60")
    page.page.evaluate("document.querySelector('#more').remove()")
    page.page.evaluate("document.querySelector('#scroll-1').scrollTop = 0")
    page.page.wait_for_timeout(1000)
    assert page.page.evaluate("document.querySelector('#scroll-1').scrollTop") == 0
    page.page.keyboard.press("Escape")
    page.wait_done()


def test_nothing_moves_while_a_reply_streams(driver):
    page = driver(("echo", "20"), ("echo-two", "fast"))
    page.page.evaluate(COUNT_SHIFTS)
    page.send(words(12))
    page.wait_running()
    page.page.evaluate("window.shifts = 0")
    places = f"[...document.querySelectorAll('{FIXED}')].map(e => e.getBoundingClientRect().top)"
    before = page.page.evaluate(places)
    page.wait_done()
    assert page.page.evaluate(places) == before
    assert page.page.evaluate("window.shifts") < 0.02


def test_a_person_who_presses_everything(driver, arena):
    """Prompts as fast as they go, stops and switched panels in between: every text stays where it belongs."""
    chance = random.Random(20261123)
    page = driver(("echo", "20"), ("echo-two", "fast"), ("bad", "circles"))
    for number in range(20):
        page.send(f"prompt number {number} " + words(chance.randrange(1, 12), f"n{number}w"))
        page.page.wait_for_timeout(chance.choice((0, 30, 120, 400)))
        what = chance.randrange(6)
        if what == 0:
            page.page.evaluate("document.querySelector('#stop-1').click()")
        elif what == 1:
            page.page.evaluate("document.querySelector('#stop-all').click()")
        elif what == 2:
            page.choose("precision", 2, chance.choice(("fast", "100")))
        elif what == 3:
            page.page.evaluate("document.querySelector('#retry-2').click()")
    page.page.wait_for_timeout(500)
    page.page.evaluate("document.querySelector('#stop-all').click()")
    page.wait_done()
    page.type("")
    page.ask("the very last one")
    conversation_id = page.page.url.split("c=")[1]

    def unfinished() -> list[str]:
        turns = arena.turns.live_turns(conversation_id)
        return [
            f"{turn.prompt[:20]} {run.panel} {run.view().phase}"
            for turn in turns
            for run in turn.runs
            if not run.done.is_set()
        ]

    page.until(unfinished, [])
    turns = arena.turns.live_turns(conversation_id)
    assert turns[-1].prompt == "the very last one"
    for panel in (1, 2, 3):
        told = [turn.prompt for turn in turns if turn.run_of(panel)]
        page.until(lambda panel=panel: page.prompts(panel), told)
        shown = page.panel(panel).locator(".now .turn").get_attribute("data-run")
        assert shown == turns[-1].run_of(panel).run_id
    assert page.chip(2) == "Ready"


# --- what is on this computer ------------------------------------------------------------------------------


def test_the_open_page_says_it_when_a_model_has_come_or_gone(arena, driver, tmp_path, monkeypatch):
    """Got by a command or by another window: nobody on this page has done anything."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    page = driver(("echo", "fast"))
    page.open_setup(1)
    page.page.fill("#model-1 input", "arena/late")
    page.page.keyboard.press("Enter")
    button, why = page.page.locator("#model-button"), page.panel(1).locator(".prose.why")
    expect(button).to_contain_text("arena/late")
    expect(why).to_contain_text("downloads")
    button.click()
    choices = page.page.locator("#model-list .choice")
    expect(choices.filter(has_text="Demo")).to_be_visible()
    assert choices.filter(has_text="arena/late").count() == 0

    root = tmp_path / "hub" / "models--arena--late"
    shutil.copytree(DEMO_FOLDER, root / "snapshots" / "c0ffee")
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("c0ffee")
    page.page.evaluate("window.backendArena.ask()")
    expect(button).to_contain_text("arena/late · on 1 of 1 backends · here")
    expect(why).to_be_empty()
    expect(choices.filter(has_text="arena/late")).to_contain_text("here")

    library = ModelLibrary(arena.store.path.parent)
    folder = shutil.copytree(DEMO_FOLDER, tmp_path / "my-own")
    entry = library.import_folder(folder)
    page.page.evaluate("window.backendArena.ask()")
    expect(choices.filter(has_text="my-own")).to_be_visible()
    library.remove(entry.id)
    library.remove("arena/late")
    page.page.evaluate("window.backendArena.ask()")
    expect(choices.filter(has_text="my-own")).to_have_count(0)
    expect(why).to_contain_text("downloads")


def test_a_target_that_this_pc_does_not_have_is_shown_and_logs_nothing(arena, new_page):
    """A conversation of another machine: its device and precision are in no menu here."""
    conversation = arena.store.start_conversation("From elsewhere")
    foreign = Target("echo", "NPU.7", "int3")
    run(arena.store, turn(arena.store, conversation, "Hi"), "Hello.", panel=1, target=foreign)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        page = Driver(new_page(f"{arena.address}?c={conversation}"))
        page.open_setup(1)
        expect(page.page.locator("#device-1 input")).to_have_value("NPU.7 — not available")
        expect(page.page.locator("#precision-1 input")).to_have_value("int3 — not available")
    assert [str(each.message) for each in warned if "list of choices" in str(each.message)] == []
