"""Calls a handler of a served page the way its own script does."""

import http.client

from tests.helpers.http import Answer, ask

API = "/gradio_api"


def run_handler(shared, cookie: str | None, fn_index: int, data: list, session: str) -> Answer:
    """Call a handler without its queue, where Gradio allows that, and with it otherwise."""
    body = {"data": data, "fn_index": fn_index, "session_hash": session}
    direct = ask(shared.address, f"{API}/run/predict", json_body=body, cookie=cookie)
    if direct.status != 404:
        return direct
    joined = ask(shared.address, f"{API}/queue/join", json_body=body, cookie=cookie)
    return joined if joined.status != 200 else outcome(shared, cookie, session)


def outcome(shared, cookie: str | None, session: str) -> Answer:
    """What the queue says in the end."""
    host, port = shared.address.removeprefix("http://").split(":")
    line = http.client.HTTPConnection(host, int(port), timeout=30)
    try:
        line.request("GET", f"{API}/queue/data?session_hash={session}", headers={"cookie": cookie or ""})
        answer, said = line.getresponse(), b""
        while b"process_completed" not in said and b"unexpected_error" not in said:
            piece = answer.fp.readline()
            if not piece:
                break
            said += piece
        return Answer(200 if b'"success":true' in said.split(b"process_completed")[-1] else 500, {}, said)
    finally:
        line.close()
