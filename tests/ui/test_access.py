"""The table of who may do what: complete, and asked by every handler at the moment of the call."""

import gradio as gr
import pytest
from gradio.context import LocalContext
from starlette.requests import Request

from ui.access import SCOPE_KEY, Login, Role, allowed, authorise, handler_name, who

VISITOR = Login("v1", "visitor", Role.VISITOR)
OWNER = Login("o1", "owner", Role.OWNER)


def asked_by(login: Login | None) -> Request:
    return Request({"type": "http", "headers": [], SCOPE_KEY: lambda: login})


def calling(function, login, *values):
    """Call a handler the way Gradio does, in the name of a login."""
    mark = LocalContext.request.set(gr.Request(asked_by(login)))
    try:
        return function(*values)
    finally:
        LocalContext.request.reset(mark)


def listed(function, monkeypatch, *roles: Role):
    monkeypatch.setattr("ui.access._ROLES_OF", {handler_name(function): frozenset(roles)})
    return allowed(function)


def greet(name: str) -> str:
    return f"Hello {name}"


def test_a_handler_runs_for_whom_the_table_names_and_for_nobody_else(monkeypatch):
    for_owner = listed(greet, monkeypatch, Role.OWNER)
    assert calling(for_owner, OWNER, "you") == "Hello you"
    for stranger in (VISITOR, None):
        with pytest.raises(gr.Error):
            calling(for_owner, stranger, "you")
    for_visitors = listed(greet, monkeypatch, Role.VISITOR)
    assert calling(for_visitors, VISITOR, "you") == "Hello you"
    with pytest.raises(gr.Error):
        calling(for_visitors, OWNER, "you")


def test_a_handler_that_is_in_no_row_runs_for_nobody(monkeypatch):
    monkeypatch.setattr("ui.access._ROLES_OF", {})
    for login in (OWNER, VISITOR, None):
        with pytest.raises(gr.Error):
            calling(allowed(greet), login, "you")


def test_a_handler_called_outside_any_request_is_refused(monkeypatch):
    with pytest.raises(gr.Error):
        listed(greet, monkeypatch, Role.OWNER)("you")


def test_a_login_that_ended_while_its_event_was_queued_is_refused(monkeypatch):
    handler, still = listed(greet, monkeypatch, Role.OWNER), [OWNER]
    request = gr.Request(Request({"type": "http", "headers": [], SCOPE_KEY: lambda: still[0]}))
    LocalContext.request.set(request)
    assert handler("you") == "Hello you"
    still[0] = None
    with pytest.raises(gr.Error, match="ended"):
        handler("you")
    LocalContext.request.set(None)


def test_the_requests_of_gradio_and_of_the_api_tell_who_is_asking():
    request = asked_by(OWNER)
    assert who(request) is who(gr.Request(request)) is who(request.scope) is OWNER
    assert who(None) is None
    assert who(Request({"type": "http", "headers": [(b"x-role", b"owner")]})) is None


def test_handlers_that_want_the_request_or_the_event_still_get_it(monkeypatch):
    """Gradio looks at a handler's signature, which the decorator must not hide."""
    from gradio.helpers import special_args

    def with_request(name: str, request: gr.Request) -> str:
        return name

    decorated = listed(with_request, monkeypatch, Role.OWNER)
    filled, *_ = special_args(decorated, ["you"], gr.Request(asked_by(OWNER)))
    assert len(filled) == 2


def test_authorising_a_page_leaves_no_handler_and_no_server_function_out():
    with gr.Blocks() as page:
        button = gr.Button()
        button.click(greet, gr.Textbox(), None)
        button.click(None, None, None, js="() => {}")
        html = gr.HTML("", server_functions=[greet])
    authorise(page)
    handlers = [dependency.fn for dependency in page.fns.values() if dependency.fn]
    assert len(handlers) == 1
    for function in (*handlers, html.greet):
        with pytest.raises(gr.Error):
            calling(function, OWNER, "you")
