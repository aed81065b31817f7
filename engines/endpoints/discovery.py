"""Finding the model servers that run on this computer: their usual ports are asked, on loopback only.

What answers is offered to the person; nothing is used before they say so.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

TIMEOUT_S = 1.0
_FOUNDRY_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Known:
    """Where a kind of server usually listens."""

    title: str
    name: str
    """What it would be called in a target."""
    port: int
    root: str = "/v1"


KNOWN = (
    Known("Ollama", "ollama", 11434),
    Known("LM Studio", "lm-studio", 1234),
    Known("llama.cpp", "llama.cpp", 8080),
    Known("lemonade", "lemonade", 13305, "/api/v1"),
    Known("lemonade", "lemonade", 8000, "/api/v1"),
    Known("OpenVINO Model Server", "ovms", 8000, "/v3"),
    Known("vLLM or another server", "vllm", 8000),
    Known("Foundry Local", "foundry", 5273),
)


@dataclass(frozen=True)
class Found:
    """A server that answered."""

    title: str
    name: str
    url: str
    models: tuple[str, ...]


def find_servers(
    known: Sequence[Known] = KNOWN, foundry_port: Callable[[], int | None] | None = None
) -> tuple[Found, ...]:
    """Ask every usual port of this computer at once; takes a second, or a little longer with Foundry Local."""
    port = (foundry_port or _foundry_port)()
    if port is not None:
        known = (*known, Known("Foundry Local", "foundry", port))
    with ThreadPoolExecutor(max_workers=len(known)) as pool:
        answers = list(pool.map(_ask, known))
    by_url = {found.url: found for found in answers if found is not None}
    return tuple(by_url.values())


def _ask(known: Known) -> Found | None:
    url = f"http://127.0.0.1:{known.port}{known.root}"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirects())
    try:
        with opener.open(f"{url}/models", timeout=TIMEOUT_S) as answer:
            listed = json.loads(answer.read(1_000_000))["data"]
        models = tuple(str(entry["id"]) for entry in listed or ())  # Ollama without a model: null
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Found(known.title, known.name, url, models)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect could lead off this computer."""

    def redirect_request(self, *_arguments: object, **_named: object) -> None:
        return None


def _foundry_port() -> int | None:
    """Foundry Local takes another port at each start; its own command says which."""
    command = shutil.which("foundry")
    if command is None:
        return None
    try:
        told = subprocess.run(
            [command, "service", "status"],
            capture_output=True,
            encoding="utf-8",  # it greets with pictures, which a Windows code page may not know
            errors="replace",
            timeout=_FOUNDRY_TIMEOUT_S,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"https?://(?:localhost|127\.0\.0\.1):(\d+)", told)
    return int(found.group(1)) if found else None
