"""Which models' own Python code may run on this computer: the owner's decisions, kept on the server.

A decision is about one model in one revision: when the maker changes the code, it is asked for again. It takes two
steps, a question that names what would run and an answer to that very question, so no single request can take it.
The command line's --trust-remote-code is the owner's own word and needs none of this.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engines.toolkit.putting import put_in_place

FILE_NAME = "trusted_models.json"
QUESTION_LASTS_S = 600.0
MOST_QUESTIONS = 20


@dataclass(frozen=True)
class Question:
    """May this model's code run? Answered by `Trust.confirm` with its token."""

    token: str
    model: str
    revision: str
    files: tuple[str, ...]
    """The Python files that the model brings."""


def python_files(folder: Path) -> tuple[str, ...]:
    """The Python files in a model's folder, by their path in it."""
    if not folder.is_dir():
        return ()
    return tuple(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.py")))


def code_revision(folder: Path, commit: str | None) -> str:
    """What a decision is tied to: the commit the model was downloaded at, and the code and settings themselves."""
    digest = hashlib.sha256((commit or "").encode())
    for name in (*python_files(folder), "config.json"):
        with contextlib.suppress(OSError):
            digest.update(name.encode() + b"\0" + (folder / name).read_bytes())
    return f"{(commit or 'folder')[:12]}-{digest.hexdigest()[:16]}"


class Trust:
    """The decisions, in one file of the data directory. Thread-safe."""

    def __init__(self, data_dir: Path, clock: Callable[[], float] = time.monotonic):
        self._path, self._clock = data_dir / FILE_NAME, clock
        self._lock = threading.Lock()
        self._questions: dict[str, tuple[Question, float]] = {}

    def allows(self, model: str, revision: str | None) -> bool:
        """Whether the owner has allowed the code of this model in this revision."""
        return revision is not None and revision in self._decisions().get(model, [])

    def ask(self, model: str, revision: str, files: tuple[str, ...]) -> Question:
        """Put the question to the owner."""
        question = Question(secrets.token_urlsafe(16), model, revision, files)
        with self._lock:
            self._questions[question.token] = (question, self._clock())
            while len(self._questions) > MOST_QUESTIONS:
                del self._questions[next(iter(self._questions))]
        return question

    def confirm(self, token: str | None) -> Question | None:
        """The owner said yes to a question; None when it was never asked, or too long ago. Raises OSError."""
        with self._lock:
            question, asked_at = self._questions.pop(token or "", (None, 0.0))
            if question is None or self._clock() - asked_at > QUESTION_LASTS_S:
                return None
            decisions = self._decisions()
            kept = decisions.setdefault(question.model, [])
            if question.revision not in kept:
                kept.append(question.revision)
            self._write(decisions)
        return question

    def withdraw(self, model: str) -> bool:
        """Allow none of this model's code any more; False when none was allowed. Raises OSError."""
        with self._lock:
            decisions = self._decisions()
            if decisions.pop(model, None) is None:
                return False
            self._write(decisions)
        return True

    def _decisions(self) -> dict[str, list[str]]:
        try:
            read = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        if not isinstance(read, dict):
            return {}
        return {str(model): [str(r) for r in kept] for model, kept in read.items() if isinstance(kept, list)}

    def _write(self, decisions: dict[str, list[str]]) -> None:
        partial = self._path.with_name(f"{self._path.name}.{os.getpid()}.part")
        partial.touch(0o600)
        partial.write_text(json.dumps(decisions, indent=1, sort_keys=True), encoding="utf-8")
        put_in_place(partial, self._path)
