"""Getting models ready from the page, in threads that belong to no browser tab. No Gradio in here."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from engines.models.folders import FORMAT_TITLES
from engines.models.library import ModelLibrary
from engines.models.together import LEFT_OUT, READY, STOPPED, Backend, GetTogether, Part
from engines.protocol import EngineSpec


@dataclass(frozen=True)
class WorkView:
    """What the page shows of the work."""

    running: bool = False
    model: str | None = None
    parts: tuple[Part, ...] = ()
    """One for each backend, however far it is."""
    elapsed_s: float = 0.0
    version: int = 0
    """Grows with every change of what is on disk."""
    titles: dict[str, str] = field(default_factory=dict)
    """Of the engines, by their names."""

    @property
    def ready(self) -> tuple[Part, ...]:
        return tuple(part for part in self.parts if part.state == READY)

    @property
    def troubles(self) -> tuple[Part, ...]:
        """What was left out, failed or stopped, with its reason."""
        return tuple(part for part in self.parts if part.problem)

    @property
    def stopped(self) -> bool:
        return any(part.state == STOPPED for part in self.parts)


class ModelWork:
    """At most one piece of work at a time; any browser can watch and stop it."""

    def __init__(self, library: ModelLibrary):
        self._library = library
        self._lock = threading.Lock()
        """Guards what follows; never held over work."""
        self._view = WorkView()
        self._cancelled = threading.Event()
        self._began = 0.0
        self._follow_up: str | None = None

    def view(self) -> WorkView:
        with self._lock:
            view = self._view
        return replace(view, elapsed_s=time.monotonic() - self._began) if view.running else view

    def start(
        self,
        wanted: Sequence[Backend],
        *,
        trust: bool = False,
        override: bool = False,
        follow_up: str | None = None,
    ) -> bool:
        """Begin; False when something is at work already. `follow_up`: the prompt to run when it is ready."""
        with self._lock:
            if self._view.running or not wanted:
                return False
            self._cancelled = threading.Event()
            self._began = time.monotonic()
            self._follow_up = follow_up
            model = wanted[0].target.model
            parts = tuple(Part(backend.target) for backend in wanted)
            titles = {backend.spec.name: backend.spec.title for backend in wanted}
            self._view = WorkView(True, model, parts, version=self._view.version, titles=titles)
        work = GetTogether(self._library, wanted, lambda part: self._change(work, part))
        options = {"trust_remote_code": trust, "override": override}
        threading.Thread(target=self._run, args=(work, options), name="models", daemon=True).start()
        return True

    def stop(self) -> None:
        """Stop; what is done and what was downloaded is kept."""
        self._cancelled.set()

    def claim_follow_up(self) -> str | None:
        """The prompt that waits for the model, handed out once."""
        with self._lock:
            follow_up, self._follow_up = self._follow_up, None
        return follow_up

    @property
    def has_follow_up(self) -> bool:
        with self._lock:
            return self._follow_up is not None

    def _run(self, work: GetTogether, options: dict[str, bool]) -> None:
        parts = work.run(self._cancelled, **options)
        with self._lock:
            elapsed = time.monotonic() - self._began
            version = self._view.version + 1
            self._view = replace(self._view, running=False, parts=parts, elapsed_s=elapsed, version=version)

    def _change(self, work: GetTogether, part: Part) -> None:
        parts = work.parts
        with self._lock:
            grown = int(part.state in (READY, LEFT_OUT))
            self._view = replace(self._view, parts=parts, version=self._view.version + grown)


def as_rows(view: WorkView) -> list[dict[str, Any]]:
    """Each backend's line of the one progress view: its name, what it does, and how far it is (0–1 or None)."""
    words = {
        READY: "Ready",
        LEFT_OUT: "Left out",
        STOPPED: "Stopped",
        "failed": "Failed",
        "waiting": "Waiting",
    }
    return [
        {
            "target": " · ".join(
                (
                    view.titles.get(part.target.engine, part.target.engine),
                    part.target.device,
                    part.target.precision,
                )
            ),
            "text": part.progress.text
            if part.progress and part.state == "working"
            else words.get(part.state, "…"),
            "fraction": part.progress.fraction if part.progress and part.state == "working" else None,
        }
        for part in view.parts
    ]


def format_choices(specs: Sequence[EngineSpec]) -> list[tuple[str, str]]:
    """What a model can be got ready for: [(label, target)], engines that read the same folder together."""
    engines: dict[tuple[str, str | None, str | None], list[EngineSpec]] = {}
    for spec in specs:
        for device in spec.devices:
            for precision in spec.precisions:
                kind = _kind(spec, device, precision)
                if kind is not None and spec not in engines.setdefault(kind, []):
                    engines[kind].append(spec)
    return [(_label(kind, found), _value(kind, found[0])) for kind, found in engines.items()]


def _kind(spec: EngineSpec, device: str, precision: str) -> tuple[str, str | None, str | None] | None:
    """(format, precision, device) as far as they make a difference to the folder; None: there is no such folder."""
    if spec.model_format is None:
        return None
    if not spec.builds:
        return spec.model_format, None, None
    build = spec.build_for(device, precision)
    return None if build is None else (spec.model_format, build.precision, build.device)


def _label(kind: tuple[str, str | None, str | None], specs: Sequence[EngineSpec]) -> str:
    model_format, precision, device = kind
    what = f"{precision}{f' for {device}' if device else ''}" if precision else "original weights"
    names = ", ".join(spec.title for spec in specs)
    title = FORMAT_TITLES[model_format]
    return f"{title} {what}" if names == title else f"{title} {what} ({names})"


def _value(kind: tuple[str, str | None, str | None], spec: EngineSpec) -> str:
    _, precision, device = kind
    return f"{spec.name}/{device or spec.devices[0]}/{precision or spec.precisions[0]}"
