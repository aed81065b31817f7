"""`python app.py` with the options about who may come in: real processes, and one sentence for what cannot be."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from engines.runtime.worker_process import PROJECT_ROOT
from tests.helpers.http import ask

PASSWORD = "correct horse battery"
NO_INTERNET = {
    "https_proxy": "http://127.0.0.1:9",
    "http_proxy": "http://127.0.0.1:9",
    "no_proxy": "127.0.0.1,localhost",
}


@contextlib.contextmanager
def served(data_dir, *options: str, lines: int = 2, **environment: str) -> Iterator[tuple[str, list[str]]]:
    """The app on a free port: its address at this computer, and the first lines that it prints."""
    command = [sys.executable, "app.py", "--no-browser", "--port", "0", "--data-dir", str(data_dir), *options]
    process = subprocess.Popen(
        command,
        cwd=PROJECT_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
    )
    try:
        said = [process.stdout.readline() for _ in range(lines)]
        port = said[0].split()[4].rsplit(":", 1)[1]
        yield f"http://localhost:{port}", said
    finally:
        process.terminate()
        rest = process.communicate(timeout=60)[0]
        assert "Traceback" not in rest, rest


def refused(data_dir, *options: str, **environment: str) -> str:
    """What the app says when it does not start as it was told to."""
    command = [sys.executable, "app.py", "--data-dir", str(data_dir), *options]
    ended = subprocess.run(
        command,
        cwd=PROJECT_ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert ended.stderr.count("\n") == 1
    return ended.stderr


def login(address: str, name: str, password: str):
    return ask(address, "/login", form={"name": name, "password": password})


def test_a_password_is_asked_for_on_this_computer_too(tmp_path):
    with served(tmp_path, "--password", PASSWORD) as (address, said):
        assert PASSWORD not in "".join(said)
        assert ask(address).headers["location"] == "/login"
        assert ask(address, "/config").status == 401
        assert login(address, "owner", "wrong password").status == 401
        entered = login(address, "owner", PASSWORD)
        assert entered.status == 303
        assert all("HttpOnly" in c and "SameSite=Strict" in c for c in entered.cookies)
        cookie = entered.cookie()
        assert ask(address, "/config", cookie=cookie).status == 200
        assert ask(address, "/logout", cookie=cookie).status in (404, 405)
        assert ask(address, "/config", cookie=cookie).status == 200
        out = ask(address, "/logout", form={}, cookie=cookie)
        assert (out.status, out.headers["location"]) == (303, "/login")
        assert ask(address, "/config", cookie=cookie).status == 401


def test_reachable_from_the_network_everyone_logs_in_and_the_passwords_are_printed(tmp_path):
    with served(tmp_path, "--host", "0.0.0.0", lines=2) as (address, said):
        process_says = "".join(said)
        assert "Everyone has to log in" in process_says or "network" in process_says
        assert ask(address, "/config").status == 401
        assert ask(address, "/config", host="192.0.2.1:80").status == 421


def test_the_password_can_come_from_a_file_or_the_environment(tmp_path):
    file = tmp_path / "password"
    file.write_text(PASSWORD + "\n")
    with served(tmp_path / "one", "--password-file", str(file)) as (address, _):
        assert login(address, "owner", PASSWORD).status == 303
    with served(tmp_path / "two", BACKEND_ARENA_PASSWORD=PASSWORD) as (address, _):
        assert login(address, "owner", PASSWORD).status == 303


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--password", "short"), "at least 8"),
        (("--password", ""), "at least 8"),
        (("--password-file", "/no/such/file"), "cannot be read"),
        (("--password", PASSWORD, "--password-file", "/dev/null"), "use one of them"),
        (("--auth-file", "/no/such/file"), "cannot be read"),
        (("--auth-file", "/dev/null", "--password", PASSWORD), "use one of them"),
        (("--auth-file", "/dev/null"), "no owner"),
        (("--allow-host", "http://x/"), "host name"),
        (("--password", PASSWORD, "doctor"), "--password"),
        (("--share", "models", "list"), "--share"),
    ],
)
def test_what_cannot_be_followed_is_one_sentence(tmp_path, options, said):
    assert said in refused(tmp_path, *options)


def test_a_short_password_in_the_environment_is_not_passed_over(tmp_path):
    assert "BACKEND_ARENA_PASSWORD" in refused(tmp_path, BACKEND_ARENA_PASSWORD="short")


def test_without_internet_sharing_says_so_and_the_page_stays_up(tmp_path):
    with served(tmp_path, "--share", HF_HOME=str(tmp_path / "hub"), **NO_INTERNET) as (address, said):
        assert said[1].startswith("No share link could be made")
        assert "--host 0.0.0.0" in said[1]
        assert ask(address).status == 200


def test_accounts_from_a_file_and_another_name_of_this_pc(tmp_path):
    file = tmp_path / "accounts"
    file.write_text(f"owner ada {PASSWORD}\nvisitor bob battery staple\n")
    options = ("--auth-file", str(file), "--allow-host", "pc.home")
    with served(tmp_path, *options) as (address, _):
        assert login(address, "ada", PASSWORD).status == 303
        assert login(address, "bob", "battery staple").status == 401  # nobody shares yet
        assert ask(address, "/login", host="pc.home:8443").status == 200
        assert ask(address, "/login", host="other.home").status == 421
