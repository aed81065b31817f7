"""Sharing in a real browser: logging in, the visitor's page, the owner's panel."""

import json
import re

import pytest

from tests.helpers.http import ask
from tests.ui.accessibility import serious
from tests.ui.share.conftest import OWNER_PASSWORD, VISITOR_PASSWORD

KEY = "document.querySelector('#live')?.dataset.key"
DONE = "() => document.querySelector('.now .turn') && !document.querySelector('.now .growing')"


def enter(page, name: str, password: str) -> None:
    page.fill("#name", name)
    page.fill("#password", password)
    page.click("button[type=submit]")


def as_visitor(shared, new_page, **look):
    page = new_page(shared.address, **look)
    enter(page, "visitor", VISITOR_PASSWORD)
    page.wait_for_selector("#panel-1 .ph")
    return page


def send(page, text: str) -> None:
    page.fill("#prompt textarea", text)
    page.press("#prompt textarea", "Enter")


def forget_pages(shared) -> None:
    """As the server does when the lines of the visitors' pages are cut."""
    unload = next(f.fn for f in shared.visitors_page.fns.values() if f.fn and f.fn.__name__ == "_unload")
    pages = unload.__wrapped__.__self__.desk.pages
    for session in list(pages._pages):
        pages.drop(session)


def test_a_visitor_logs_in_chats_and_finds_only_their_own_conversations(shared, new_page):
    page = new_page(shared.address)
    assert page.url.endswith("/login")
    enter(page, "visitor", "no such password")
    assert "do not belong together" in page.inner_text("[role=alert]")
    enter(page, "visitor", VISITOR_PASSWORD)
    page.wait_for_selector("#panel-1 .ph")
    assert "the test machine" in page.inner_text("#visitor-banner")
    assert "not the words" in page.inner_text("#visitor-banner")
    send(page, "hello from a visitor")
    page.wait_for_function(DONE)
    assert "hello from a visitor" in page.inner_text("#panel-1 .now .reply")
    page.click("#new-conversation")
    page.wait_for_selector("#panel-1 .now .turn", state="detached")
    page.click("#my-conversations input")
    page.locator("ul[role=listbox] li[role=option]").filter(has_text="hello from").click()
    page.wait_for_function(DONE)
    assert "hello from a visitor" in page.inner_text("#panel-1 .now .reply")
    other = as_visitor(shared, new_page)
    mine = re.search(r"c=(\w+)", page.url)[1]
    other.goto(f"{shared.address}/?c={mine}")
    other.wait_for_selector("#panel-1 .ph")
    assert "hello from a visitor" not in other.inner_text("body")
    page.click("text=Log out")
    page.wait_for_selector("#password")
    page.goto(shared.address)
    assert page.url.endswith("/login")


def test_a_visitors_page_outlives_a_line_that_was_down_and_a_reload(shared, new_page):
    """A phone that sleeps or changes its network: the server has forgotten the page, the visitor has not."""
    page = as_visitor(shared, new_page)
    page.wait_for_selector("#live[data-loaded]", state="attached")
    send(page, "before it")
    page.wait_for_function(DONE)
    key = page.evaluate(KEY)
    page.context.set_offline(True)
    page.wait_for_selector("#notices .notice >> text=does not answer")
    page.fill("#prompt textarea", "typed meanwhile")
    forget_pages(shared)
    page.context.set_offline(False)
    page.wait_for_function(f"{KEY} !== {json.dumps(key)}")
    page.wait_for_selector("#panel-1 .now .reply >> text=before it")
    page.wait_for_selector("#notices .notice", state="detached")
    page.press("#prompt textarea", "Enter")
    page.wait_for_function("document.querySelectorAll('#panel-1 .msg.user').length == 2")
    page.wait_for_function(DONE)
    page.reload()
    page.wait_for_function("document.querySelectorAll('#panel-1 .msg.user').length == 2")
    assert "typed meanwhile" in page.inner_text("#panel-1 .now .reply")


def test_the_visitors_page_holds_nothing_of_the_owners(shared):
    cookie = shared.visitor()
    settings = json.loads(ask(shared.address, "/config", cookie=cookie).text)
    sent = json.dumps([settings["components"], settings["dependencies"]])
    assert "My conversations" in sent
    for secret in (
        str(shared.store.path.parent),
        "Trends",
        "Privacy",
        "Hugging Face",
        "Worker log",
        "Share now",
    ):
        assert secret not in sent
    assert str(shared.store.path.parent) not in ask(shared.address, cookie=cookie).text


def test_the_owner_sees_the_way_in_and_who_is_there_and_ends_it(shared, new_page):
    guest = as_visitor(shared, new_page)
    send(guest, "word " * 30)
    page = new_page(shared.address)
    enter(page, "owner", OWNER_PASSWORD)
    page.wait_for_selector("#panel-1 .ph")
    page.click("#share")
    page.wait_for_selector("#share-view h3")
    assert "visitor 1" in page.inner_text("#share-view")
    page.click("#share-end")
    page.wait_for_selector("#share-start", state="visible")
    guest.wait_for_url("**/login")  # by itself
    assert "has ended. No visitors are let in" in guest.inner_text("[role=alert]")
    enter(guest, "visitor", VISITOR_PASSWORD)  # the right one, of before
    assert "No visitors are let in just now" in guest.inner_text("[role=alert]")
    assert ask(shared.address, "/login", form={"name": "visitor", "password": VISITOR_PASSWORD}).status == 401


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_visitors_page_and_the_login_page_pass_axe(shared, new_page, scheme):
    page = new_page(shared.address, width=390, scheme=scheme)
    assert not serious(page)
    enter(page, "visitor", VISITOR_PASSWORD)
    page.wait_for_selector("#panel-1 .ph")
    assert not serious(page)
