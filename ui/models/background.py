"""Getting models ready from the page, in a thread that belongs to no browser tab. No Gradio in here."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from engines.engine import EngineError
from engines.models.folders import FORMAT_TITLES
from engines.models.library import ModelLibrary
from engines.processes.jobs import CancelledError
from engines.protocol import EngineSpec, Progress, Target


@dataclass(frozen=True)
class WorkView:
    """What the page shows of the work."""

    running: bool = False
    target: Target | None = None
    progress: Progress | None = None
    done: tuple[str, ...] = ()
    """Targets that are ready now."""
    problem: str | None = None
    remedy: str | None = None
    elapsed_s: float = 0.0
    version: int = 0
    """Grows with every change of what is on disk."""


class ModelWork:
    """At most one piece of work at a time; any browser can watch and stop it."""

    def __init__(self, library: ModelLibrary):
        self._library = library
        self._lock = threading.Lock()
        self._view = WorkView()
        self._cancelled = threading.Event()
        self._began = 0.0

    def view(self) -> WorkView:
        with self._lock:
            view = self._view
        return replace(view, elapsed_s=time.monotonic() - self._began) if view.running else view

    def start(self, wanted: Sequence[tuple[Target, EngineSpec]], *, trust: bool, override: bool) -> bool:
        """Begin; False when something is at work already."""
        with self._lock:
            if self._view.running or not wanted:
                return False
            self._cancelled = threading.Event()
            self._began = time.monotonic()
            self._view = WorkView(running=True, target=wanted[0][0], version=self._view.version)
        threading.Thread(target=self._run, args=(tuple(wanted), trust, override), daemon=True).start()
        return True

    def stop(self) -> None:
        self._cancelled.set()

    def _run(self, wanted: tuple[tuple[Target, EngineSpec], ...], trust: bool, override: bool) -> None:
        problem: EngineError | None = None
        try:
            for target, spec in wanted:
                self._change(target=target, progress=None)
                self._library.prepare(
                    target,
                    spec,
                    lambda progress: self._change(progress=progress),
                    self._cancelled,
                    trust_remote_code=trust,
                    override=override,
                )
                self._change(done=(*self._view.done, str(target)), version=self._view.version + 1)
        except CancelledError:
            problem = EngineError("Stopped. What was downloaded is kept; getting it again carries on there.")
        except EngineError as error:
            problem = error
        except OSError as error:
            problem = EngineError(f"The disk refused: {error}.")
        self._change(
            running=False,
            progress=None,
            problem=str(problem) if problem else None,
            remedy=problem.remedy if problem else None,
            elapsed_s=time.monotonic() - self._began,
            version=self._view.version + 1,
        )

    def _change(self, **changes) -> None:
        with self._lock:
            self._view = replace(self._view, **changes)


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
