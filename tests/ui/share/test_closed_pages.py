"""What the server keeps of pages that nobody looks at any more: nothing."""

import http.client
import time

from tests.helpers.http import ask

API = "/gradio_api"


def opened(shared, cookie: str, session: str, fn_index: int) -> None:
    """Have a handler run for the page, and read what it says to the end."""
    body = {"data": [""], "fn_index": fn_index, "session_hash": session}
    assert ask(shared.address, f"{API}/queue/join", json_body=body, cookie=cookie).status == 200
    line = connection(shared)
    line.request("GET", f"{API}/queue/data?session_hash={session}", headers={"cookie": cookie})
    assert b"process_completed" in line.getresponse().read()
    line.close()


def closed(shared, cookie: str, session: str) -> None:
    """Hold the heartbeat for a moment and drop it, as a closed tab does."""
    line = connection(shared)
    line.request("GET", f"{API}/heartbeat/{session}", headers={"cookie": cookie})
    beat = line.getresponse()
    assert b"ALIVE" in beat.readline()
    beat.close()
    line.close()


def connection(shared) -> http.client.HTTPConnection:
    host, port = shared.address.removeprefix("http://").split(":")
    return http.client.HTTPConnection(host, int(port), timeout=30)


def kept(shared) -> dict[str, set[str]]:
    """Every place in which Gradio could remember a page."""
    page = shared.owners_page
    queue, states = page._queue, page.server_app.state_holder
    places = {
        "messages": queue.pending_messages_per_session,
        "events": queue.pending_event_ids_session,
        "states": states.session_data,
        "times": states.time_last_used,
        "streams": page.pending_streams,
    }
    return {name: {key for key in place if key.startswith("closing")} for name, place in places.items()}


def test_a_closed_page_leaves_nothing_behind(shared):
    cookie = shared.owner()
    load = next(i for i, f in shared.owners_page.fns.items() if f.fn and f.fn.__name__ == "_load")
    for number in range(3):
        opened(shared, cookie, f"closing{number}", load)
    assert kept(shared)["states"] == {"closing0", "closing1", "closing2"}
    for number in range(3):
        closed(shared, cookie, f"closing{number}")
    until = time.monotonic() + 30
    while any(kept(shared).values()) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(kept(shared).values()), kept(shared)


def test_a_page_closed_while_it_loads_is_cleared_up_by_the_next(shared):
    cookie = shared.owner()
    load = next(i for i, f in shared.owners_page.fns.items() if f.fn and f.fn.__name__ == "_load")
    body = {"data": [""], "fn_index": load, "session_hash": "closing-early"}
    assert ask(shared.address, f"{API}/queue/join", json_body=body, cookie=cookie).status == 200
    closed(shared, cookie, "closing-early")
    until = time.monotonic() + 30
    while any(kept(shared).values()) and time.monotonic() < until:
        opened(shared, cookie, "closing-later", load)
        closed(shared, cookie, "closing-later")
        time.sleep(0.2)
    assert not any(kept(shared).values()), kept(shared)
