"""The System tab's sections for other servers and for programs, in a real browser."""

import re

import pytest
from playwright.sync_api import expect

from engines.protocol import DeviceStatus
from tests.helpers.server_double import MODELS, ServerDouble
from tests.ui.accessibility import serious
from tests.ui.api.conftest import ECHO
from ui.system.servers import added_html

SECRET = "sk-very-secret-4711"


@pytest.fixture
def page(second, new_page):
    page = new_page(second.address)
    page.get_by_role("tab", name="System").click()
    expect(page.locator("#system-servers")).to_contain_text("double", timeout=30_000)
    return page


def field(page, name):
    return page.locator(f"#{name} input, #{name} textarea").first


def test_a_server_is_added_seen_offered_and_forgotten(page, second):
    with ServerDouble(key=SECRET) as locked:
        field(page, "server-name").fill("locked")
        field(page, "server-url").fill(locked.url)
        field(page, "server-key").fill(SECRET)
        page.locator("#server-add").click()
        expect(page.locator("#server-said")).to_contain_text(
            f"locked answers: {len(MODELS)} models", timeout=30_000
        )
        expect(page.locator("#system-servers")).to_contain_text("with a key")
        expect(field(page, "server-key")).to_have_value("")
        expect(page.locator("#system-engines")).to_contain_text("locked")
        assert SECRET not in page.content()
        page.locator("#server-known input").click()
        page.get_by_role("option", name="locked").click()
        page.locator("#server-remove").click()
        expect(page.locator("#server-said")).to_contain_text("locked and its key are forgotten")
        expect(page.locator("#system-servers")).not_to_contain_text("locked")


def test_a_server_that_lists_no_models_is_doubted_as_a_wrong_path_would_look_the_same():
    said = added_html("elsewhere", DeviceStatus("elsewhere", True, title="http://localhost:11434/api"))
    assert "lists no models" in said
    assert "usually ends in /v1" in said
    assert "1 model." in added_html("ollama", DeviceStatus("ollama", True, models=("phi3:mini",)))


@pytest.mark.parametrize(
    ("name", "url", "words"),
    [
        ("a b", "http://localhost/v1", "cannot be a server's name"),
        ("x", "localhost", "is not a server's address"),
    ],
)
def test_what_cannot_be_a_server_is_said_and_kept_in_the_fields(page, name, url, words):
    field(page, "server-name").fill(name)
    field(page, "server-url").fill(url)
    page.locator("#server-add").click()
    expect(page.locator("#server-said")).to_contain_text(words)
    expect(field(page, "server-name")).to_have_value(name)


def test_a_key_is_shown_once_and_a_lane_gets_a_name(page, second, new_page):
    field(page, "key-name").fill("tablet")
    page.locator("#key-add").click()
    made = field(page, "key-made")
    expect(made).to_have_value(re.compile("^ba-"))
    key = made.input_value()
    assert second.keys.find(key).name == "tablet"
    field(page, "alias-name").fill("gpt-4o")
    page.locator("#alias-lane input").fill(ECHO)
    page.locator("#alias-lane input").press("Enter")
    page.locator("#alias-give").click()
    expect(page.locator("#api-aliases")).to_contain_text(f"gpt-4o is {ECHO}")
    assert serious(page) == []
    again = new_page(second.address)
    again.get_by_role("tab", name="System").click()
    expect(again.locator("#api-keys")).to_contain_text("tablet")
    assert key not in again.content()
    again.locator("#key-revoke").click()
    expect(again.locator("#api-said")).to_contain_text("opens nothing any more")
    assert second.keys.find(key) is None
    field(again, "alias-name").fill("gpt-4o")
    again.locator("#alias-take").click()
    expect(again.locator("#api-aliases")).not_to_contain_text("gpt-4o")
