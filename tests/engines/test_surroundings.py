"""What children know of this process's environment: what they need, and no secrets."""

import os
import sys
import threading

import pytest

from engines.processes.jobs import run_job
from engines.processes.surroundings import is_secret, without_secrets
from tests.helpers.worlds import ECHO, ask, manager_on

SECRETS = {"HF_TOKEN": "hf_secret", "OPENAI_API_KEY": "sk-secret", "BACKEND_ARENA_PASSWORD": "long enough"}


@pytest.mark.parametrize(
    "name",
    [
        *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "GITHUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"),
        *("OPENAI_API_KEY", "DB_PASSWORD", "MY_APIKEY", "BACKEND_ARENA_PASSWORD", "hf_token", "TOKEN"),
        *("PGPASSWORD", "MYSQL_PWD", "DB_PASS", "AZURE_OPENAI_KEY", "GITHUB_PAT", "SIGNING_KEY", "MyToken"),
        *("SENTRY_DSN", "SLACK_WEBHOOK_URL", "SERVICE_JWT", "OPENROUTER_KEY"),
    ],
)
def test_what_names_a_secret_is_one(name):
    assert is_secret(name)
    assert name not in without_secrets({name: "x"})


@pytest.mark.parametrize(
    "name",
    [
        "PATH",
        "TOKENIZERS_PARALLELISM",
        "HF_HOME",
        "HF_HUB_OFFLINE",
        "KEYBOARD",
        "OV_CACHE",
        "AUTHOR",
        "PWD",
        "OLDPWD",
        "PATHEXT",
    ],
)
def test_what_names_none_is_kept(name):
    assert without_secrets({name: "x"})[name] == "x"


def test_an_address_with_a_password_is_a_secret_unless_it_is_a_way_out():
    given = {
        "DATABASE_URL": "postgres://me:word@db/x",
        "CACHE": "redis://:word@cache:6379",
        "HF_ENDPOINT": "https://hub.example",
        "HTTPS_PROXY": "http://me:word@proxy:3128",
        "PIP_INDEX_URL": "https://me:word@packages.example/simple",
    }
    assert given.keys() - without_secrets(given).keys() == {"DATABASE_URL", "CACHE"}


@pytest.mark.skipif(sys.platform != "linux", reason="reads another process's environment from /proc")
def test_a_worker_gets_no_secret(tmp_path, monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    manager = manager_on(tmp_path)
    try:
        with manager.lease(ECHO) as lease:
            lease.generate("run", ask(), lambda event: None)
            (worker,) = [slot.worker for slot in manager._slots.values() if slot.worker]
            with open(f"/proc/{worker.pid}/environ", "rb") as file:  # noqa: PTH123
                seen = file.read()
    finally:
        manager.shutdown()
    assert b"PATH=" in seen
    assert not [value for value in SECRETS.values() if value.encode() in seen]


@pytest.mark.parametrize("needs_token", [False, True])
def test_only_a_job_that_downloads_gets_the_token(tmp_path, monkeypatch, needs_token):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("PYTHONPATH", os.getcwd())  # noqa: PTH109
    found = run_job(
        "tests.helpers.tell_token",
        {},
        tmp_path / "job.log",
        lambda progress: None,
        threading.Event(),
        needs_token=needs_token,
    )
    assert found == {"token": "hf_secret" if needs_token else None}
