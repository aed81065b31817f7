"""The page as it is first sent: made once for each address and role, and the same as Gradio would make it."""

import gzip

from tests.helpers.apart import run_apart
from tests.helpers.http import ask
from ui.share.front_page import MOST_ADDRESSES, FrontPage


def test_each_role_gets_its_own_page_and_it_is_made_once(shared):
    owner, visitor = shared.owner(), shared.visitor()
    owners = [ask(shared.address, cookie=owner).body for _ in range(2)]
    visitors = [ask(shared.address, cookie=visitor).body for _ in range(2)]
    assert owners[0] == owners[1]
    assert visitors[0] == visitors[1]
    assert b"measure-tab" in owners[0]
    assert b"measure-tab" not in visitors[0]
    assert ask(shared.address).status == 303


def test_it_is_what_gradio_makes_and_comes_packed_to_whoever_takes_that(shared):
    cookie = shared.owner()
    plain = ask(shared.address, "/?c=one", cookie=cookie)
    by_gradio = ask(shared.address, "/?other=1", cookie=cookie)
    assert plain.body == by_gradio.body
    packed = ask(shared.address, cookie=cookie, accept_encoding="gzip, deflate, br")
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed.body) == plain.body
    assert len(packed.body) < len(plain.body) / 5
    for answer in (plain, packed):
        assert answer.headers["cache-control"] == "no-store"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


def test_another_address_of_ours_gets_its_own_links(shared):
    cookie, port = shared.owner(), shared.address.rsplit(":", 1)[1]
    local = ask(shared.address, cookie=cookie, host=f"localhost:{port}").text
    numbered = ask(shared.address, cookie=cookie, host=f"127.0.0.1:{port}").text
    assert f"http://localhost:{port}" in local
    assert f"http://localhost:{port}" not in numbered


async def _answer(page: FrontPage, host: str, status: int) -> None:
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "headers": [(b"host", host.encode())],
        "query_string": b"",
        "status": status,
    }

    async def send(message) -> None:
        if message["type"] == "http.response.start":
            assert message["status"] == status

    await page(scope, None, send)


def test_what_is_kept_is_bounded_and_a_refusal_is_not_kept():
    async def app(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": scope["status"], "headers": []})
        await send({"type": "http.response.body", "body": b"page"})

    page = FrontPage(app)
    run_apart(_answer(page, "one", 500))
    assert not page._made
    for number in range(30):
        run_apart(_answer(page, f"host{number}", 200))
    assert len(page._made) == MOST_ADDRESSES
