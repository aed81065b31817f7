"""The Compare tab under hands that slip, type Japanese or Arabic, drop files beside the place, reload and print."""

from playwright.sync_api import expect

from tests.ui.compare.driver import words

FILE = """() => {
  const carried = new DataTransfer();
  carried.items.add(new File(['The lighthouse is red.'], 'facts.txt', {type: 'text/plain'}));
  return carried;
}"""
DROPPED = """([place, carried]) => {
  const drop = new DragEvent('drop', {dataTransfer: carried, bubbles: true, cancelable: true});
  document.querySelector(place).dispatchEvent(drop);
  return drop.defaultPrevented;
}"""


def sent(arena) -> int:
    return arena.store.conversations().total


def test_a_double_click_on_send_sends_once_and_stops_nothing(driver, arena):
    page = driver(("echo", "20"))
    page.ask("wake up")
    page.page.click("#new-conversation")
    page.page.wait_for_selector(".now .turn", state="detached")
    before = sent(arena)
    page.type(words(10))
    box = page.page.locator("#send").bounding_box()
    place = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    for pause_ms in (40, 200, 0):  # before the server has answered, and when Stop all has taken the place
        page.page.mouse.click(*place)
        page.page.wait_for_timeout(pause_ms)
    page.page.wait_for_selector(".now .turn")
    page.wait_done()
    assert page.phase(1) == "finished"
    assert page.notices() == ""
    assert sent(arena) == before + 1


def test_enter_held_down_sends_once(driver, arena):
    page = driver(("echo", "20"))
    before = sent(arena)
    page.type(words(10))
    page.page.focus("#prompt textarea")
    for _ in range(12):
        page.page.keyboard.down("Enter")  # the second and later ones repeat
        page.page.wait_for_timeout(30)
    page.page.keyboard.up("Enter")
    page.page.wait_for_selector(".now .turn")
    page.wait_done()
    assert page.phase(1) == "finished"
    assert page.notices() == ""
    assert sent(arena) == before + 1


def test_escape_while_choosing_characters_or_on_another_tab_stops_nothing(driver):
    page = driver(("echo", "20"))
    page.send(words(14))
    page.wait_running()
    page.page.evaluate(
        """document.querySelector('#prompt textarea').dispatchEvent(
            new KeyboardEvent('keydown', {key: 'Escape', isComposing: true, bubbles: true}))"""
    )
    page.page.get_by_role("tab", name="History").click()
    page.page.locator("#history-search").wait_for()
    page.page.keyboard.press("Escape")
    page.page.get_by_role("tab", name="Compare").click()
    page.wait_done()
    assert page.phase(1) == "finished"


def test_a_file_beside_the_prompt_is_taken_too_and_no_tab_is_left_for_one(driver):
    page = driver(("echo", "fast"))
    carried = page.page.evaluate_handle(FILE)
    assert page.page.evaluate(DROPPED, ["#panel-1", carried])
    expect(page.page.locator("#detach")).to_contain_text("facts.txt")
    page.page.get_by_role("tab", name="History").click()
    assert page.page.evaluate(DROPPED, ["#history-search", page.page.evaluate_handle(FILE)])


def test_copying_works_where_pages_have_no_clipboard(driver):
    """As over plain http from another machine."""
    page = driver(("echo", "fast"))
    page.page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.ask("copy me")
    copy = page.page.locator("#panel-1 .copy-reply")
    copy.click()
    expect(copy).to_contain_text("Copied")
    page.page.focus("#prompt textarea")
    page.page.keyboard.press("Control+V")
    assert page.page.input_value("#prompt textarea").strip() == "copy me"


def test_an_edit_can_be_left_with_what_was_typed_before(driver):
    page = driver(("echo", "fast"))
    page.ask("the first prompt")
    page.type("half a thought")
    page.page.click("#edit-last")
    box = page.page.locator("#prompt textarea")
    expect(box).to_have_value("the first prompt")
    expect(box).to_be_focused()
    page.page.get_by_role("button", name="Leave it as it is").click()
    expect(box).to_have_value("half a thought")
    expect(page.page.locator("#notices .notice")).to_have_count(0)
    page.ask("the second prompt")
    assert page.prompts(1) == ["the first prompt", "the second prompt"]


def test_a_reload_does_not_tell_a_blind_comparisons_names(driver):
    page = driver(("echo", "fast"), ("echo-two", "fast"))
    page.page.get_by_label("Blind").check()
    page.page.wait_for_selector("#setup-1", state="hidden")
    page.ask("who is who")
    page.page.reload()
    page.page.wait_for_selector("#live[data-loaded]", state="attached")
    page.page.wait_for_selector("#vote", state="visible")
    assert "cho" not in page.page.locator("#panels").inner_text().replace("who is who", "")
    expect(page.page.get_by_label("Blind")).to_be_checked()
    page.page.get_by_label("1 · Backend A").check()
    expect(page.panel(1).locator(".ph-title")).to_contain_text("cho")


def test_text_runs_in_the_direction_of_its_script_and_lists_keep_its_size(driver):
    page = driver(("echo", "fast"))
    page.ask("\u0645\u0631\u062d\u0628\u0627 (OpenVINO)\n\nleft to right\n\n- a\n  - b\n    - c")
    edges = """selector => [...document.querySelectorAll(selector)].map(each => {
        const text = document.createRange(), box = each.getBoundingClientRect();
        text.selectNodeContents(each);
        const line = text.getClientRects()[0];
        return [line.left - box.left, box.right - line.right];
    })"""
    (left, right), *_ = page.page.evaluate(edges, "#panel-1 .bubble")
    assert right < left
    arabic, english = page.page.evaluate(edges, "#panel-1 .reply .md p")
    assert arabic[1] < arabic[0]
    assert english[0] < english[1]
    size = "e => getComputedStyle(e).fontSize"
    innermost = page.page.locator("#panel-1 .reply li li li")
    assert innermost.evaluate(size) == page.page.locator("#panel-1 .reply .md").evaluate(size)


def test_paper_shows_all_that_was_said_dark_on_light(driver):
    page = driver(("echo", "fast"), scheme="dark")
    page.ask("\n\n".join(f"paragraph {number}" for number in range(60)))
    page.page.emulate_media(media="print")
    page.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    hidden = "e => e.scrollHeight - e.clientHeight"
    assert page.page.locator("#scroll-1").evaluate(hidden) <= 1
    expect(page.page.locator("#composer")).to_be_hidden()
    colour = page.page.locator("#panel-1 .reply .md").evaluate("e => getComputedStyle(e).color")
    assert max(int(part) for part in colour[4:-1].split(",")) < 100
    page.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.page.evaluate("document.body.classList.contains('dark')")


def test_in_high_contrast_it_is_seen_what_is_chosen(driver):
    """The system paints over backgrounds, by which alone it was told."""
    page = driver(("echo", "fast"))
    page.page.emulate_media(forced_colors="active")
    style = "(e, name) => getComputedStyle(e).getPropertyValue(name)"
    assert page.page.locator("#mode input").first.evaluate(style, "appearance") != "none"
    chosen = page.page.get_by_role("tab", selected=True)
    assert "underline" in chosen.evaluate(style, "text-decoration-line")


def test_what_is_sent_to_a_deleted_conversation_is_not_lost_with_it(driver, arena):
    page = driver(("echo", "fast"))
    page.ask("to be deleted")
    conversation = page.page.url.split("c=")[1]
    arena.store.delete([conversation])
    page.send("sent afterwards")
    expect(page.page.locator("#notices")).to_contain_text("deleted from the history")
    assert page.page.input_value("#prompt textarea") == "sent afterwards"
    arena.store.undelete([conversation])
    page.page.press("#prompt textarea", "Enter")
    page.until(lambda: page.prompts(1), ["to be deleted", "sent afterwards"])
