"""Sharing on and off: who stays in, who is out, what the link is, and what happens when it breaks."""

import json
import threading

import pytest

from tests.helpers.http import ask
from ui.access import Role
from ui.share.door import Door
from ui.share.owner_panel import _way_in
from ui.share.settings import Made, ShareSettings
from ui.share.sharing import Sharing, SharingView, what_to_tell
from ui.share.tunnel import TunnelError, Watch


class Tunnel:
    """Stands for the tunnel program, which cannot be had here."""

    link = "https://abc.share.example"

    def __init__(self, port: int):
        self.alive = True

    def close(self) -> None:
        self.alive = False


def no_tunnel(port: int):
    raise TunnelError("No share link could be made: nobody answers. Try --host 0.0.0.0.")


def open_door():
    door = Door()
    return door, Sharing(door, ShareSettings(), Made(), 7860, Tunnel)


def test_who_starts_sharing_stays_in_and_everyone_else_logs_in():
    door, sharing = open_door()
    mine, login = door.logins.open("owner", Role.OWNER, kept_open=True)
    other, _ = door.logins.open("owner", Role.OWNER, kept_open=True)
    assert door.comes(None).is_owner
    view = sharing.start(by=login)
    assert view.on
    assert view.link == Tunnel.link
    assert door.hosts.knows("abc.share.example", 7860)
    assert door.comes(mine) == login
    assert door.comes(other) is None
    assert door.comes(None) is None
    assert door.logins.attempt("visitor", view.visitor_password, "x").token
    assert door.logins.attempt("owner", view.owner_password, "y").token


def test_ending_puts_visitors_out_takes_the_name_back_and_opens_the_door():
    door, sharing = open_door()
    view = sharing.start()
    visitor = door.logins.attempt("visitor", view.visitor_password, "x").token
    assert door.comes(visitor) is not None
    sharing.end()
    assert door.logins.find(visitor) is None
    assert not door.hosts.knows("abc.share.example", 7860)
    assert not door.locked
    assert sharing.view().visitor_password is None
    again = sharing.start()
    assert again.visitor_password != view.visitor_password


def test_with_a_chosen_password_the_door_stays_locked_when_sharing_ends():
    door = Door(locked=True)
    door.logins.accounts.add("owner", Role.OWNER, "long enough")
    sharing = Sharing(door, ShareSettings(password="long enough"), Made(), 7860, Tunnel)
    sharing.start()
    sharing.end()
    assert door.locked


def test_the_way_in_can_be_copied():
    said = _way_in(SharingView(on=True, link="https://a.example", visitor_password="one-two"))
    assert 'data-copy="https://a.example"' in said
    assert 'data-copy="one-two"' in said


def test_without_a_tunnel_there_is_one_sentence_and_the_door_is_as_before():
    door = Door()
    sharing = Sharing(door, ShareSettings(share=True), Made(), 7860, no_tunnel)
    view = sharing.start()
    assert not view.on
    assert what_to_tell(view, door.locked) == [view.problem]
    assert not door.locked
    assert door.comes(None).is_owner


def test_a_tunnel_that_closes_by_itself_ends_the_sharing():
    tunnel, closed = Tunnel(1), threading.Event()
    Watch(tunnel, closed.set, every_s=0.01)
    tunnel.alive = False
    assert closed.wait(10)
    _, sharing = open_door()
    sharing.start()
    sharing._broke()
    assert not sharing.view().on
    assert "closed by itself" in sharing.view().problem


def test_a_login_over_the_link_has_a_cookie_for_https_only(shared):
    answer = ask(
        shared.address,
        "/login",
        form={"name": "visitor", "password": "come in and look"},
        x_forwarded_proto="https",
        origin=f"https://{shared.address.removeprefix('http://')}",
    )
    assert answer.status == 303
    assert all("Secure" in cookie for cookie in answer.cookies)


@pytest.mark.parametrize("welcome", [True, False])
def test_anonymous_visitors_come_in_as_visitors_only_while_they_are_welcome(shared, monkeypatch, welcome):
    monkeypatch.setattr(shared.door, "anonymous_visitors", True)
    monkeypatch.setattr(shared.door, "visitors_welcome", welcome)
    answer = ask(shared.address)
    if not welcome:
        assert answer.headers["location"] == "/login"
        return
    assert answer.status == 200
    settings = json.loads(ask(shared.address, "/config", cookie=answer.cookie()).text)
    assert "My conversations" in json.dumps(settings["components"])
    assert "Share now" not in json.dumps(settings["components"])
