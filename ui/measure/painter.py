"""Paints the Measure tab: the measurement that is looked at, as slots of HTML, and of those only what changed.

The browser asks once a second while something runs (assets/page.js) and says what it has; nothing is kept here for
it, so a closed tab costs nothing and loses nothing. What is derived from a measurement is derived once per change of
it: the machine that is measured has better things to do.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from engines.measure.records import Measurement, Watch
from engines.measure.tuner import candidates
from storage.database import StoreError
from storage.measurements import Listed
from ui import format as fmt
from ui.measure import passes_html as passes
from ui.measure import progress_html as progress
from ui.measure import results_html as parts
from ui.measure.board import Board
from ui.measure.desk import Desk
from ui.measure.side_by_side import side_by_side
from ui.measure.tuning import TuningWork

SLOTS = (
    *("progress", "verdicts", "lanes", "figures", "charts", "passes", "where", "contract"),
    *("beside", "list"),
)
_KEPT_BOARDS = 6
_LISTED = 30


@dataclass(frozen=True)
class View:
    """What one browser tab looks at."""

    shown: str = ""
    """Id of a measurement; empty: the one that runs or ran last."""
    beside: str = ""
    """Id of the one it is compared with; empty: none."""
    asked: int = 0
    """Counts what the person did, so that every act is a change that the browser asks after."""
    deleting: str = ""
    """Id of the measurement of which the person is asked whether it is to be deleted for good; empty: none."""

    @classmethod
    def of(cls, text: Any) -> View:
        """From what the browser sends; whatever it is, a view."""
        try:
            found = json.loads(text) if isinstance(text, str) and text else None
        except ValueError:
            found = None
        known = found if isinstance(found, dict) else {}
        asked = known.get("asked")
        return cls(
            str(known.get("shown") or "")[:64],
            str(known.get("beside") or "")[:64],
            asked if isinstance(asked, int) else 0,
            str(known.get("deleting") or "")[:64],
        )

    def text(self) -> str:
        return json.dumps(asdict(self))


class Painter:
    """Works out what a tab has to show. Thread-safe."""

    def __init__(self, desk: Desk, tuning: TuningWork):
        self._desk, self._tuning = desk, tuning
        self._boards: OrderedDict[tuple[str, str], tuple[Measurement, Board, dict[str, str]]] = OrderedDict()
        self._lock = threading.Lock()

    def changes(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """For the browser: the slots whose mark is not the one it has, and whether anything runs."""
        view = View.of(asked.get("value"))
        marks = asked.get("marks")
        had: Mapping[str, Any] = marks if isinstance(marks, Mapping) else {}
        try:
            slots = dict(self._slots(view))
        except StoreError as error:
            slots = {"progress": f'<p class="notice error" role="alert">{fmt.text(error)}</p>'}
        fresh = {f"measure-{name}": html for name, html in slots.items()}
        found = {name: _mark(html) for name, html in fresh.items()}
        changed = {name: html for name, html in fresh.items() if had.get(name) != found[name]}
        return {
            "slots": changed,
            "marks": {name: found[name] for name in changed},
            "running": self._busy(),
        }

    def _busy(self) -> bool:
        return self._desk.busy or self._tuning.busy

    def shown(self, view: View) -> Measurement | None:
        """The measurement a tab looks at."""
        session = self._desk.session
        running = session.measurement if session else None
        if running is not None and view.shown in ("", running.id):
            return running
        return self._desk.measurements.measurement(view.shown) if view.shown else None

    def _slots(self, view: View) -> Iterator[tuple[str, str]]:
        session, listed = self._desk.session, self._desk.measurements.listed(_LISTED)
        watch = session.watch() if session else None
        yield "progress", progress.progress(watch) if watch and self._desk.busy else _ended(watch, view)
        yield (
            "list",
            progress.listed(
                listed,
                view.shown or (watch.measurement.id if watch else ""),
                self._running(watch),
                view.deleting,
            ),
        )
        measurement = self._measurement(view, watch, listed)
        if measurement is None:
            yield from ((name, "") for name in SLOTS if name not in ("progress", "list"))
            return
        board, drawn = self._board(measurement)
        yield from drawn.items()
        row = next((row for row in listed if row.id == measurement.id), None)
        buttons = self._buttons(measurement, bool(row and row.imported_from))
        yield "lanes", parts.lanes(board, buttons)
        yield "verdicts", parts.verdicts(board, buttons)
        yield "beside", self._beside(view, measurement, listed)

    def _running(self, watch: Watch | None) -> str | None:
        return watch.measurement.id if watch and self._desk.busy else None

    def _measurement(self, view: View, watch: Watch | None, listed: tuple[Listed, ...]) -> Measurement | None:
        if watch is not None and view.shown in ("", watch.measurement.id):
            return watch.measurement
        row = next((row for row in listed if row.id == view.shown), None)
        if row is None:
            return None
        with self._lock:
            kept = self._boards.get((row.id, row.updated_at))
        return kept[0] if kept else self._desk.measurements.measurement(row.id)

    def _board(self, measurement: Measurement) -> tuple[Board, dict[str, str]]:
        """The board and the slots that follow from it alone, made once per state of the measurement."""
        key = (measurement.id, measurement.updated_at or "")
        with self._lock:
            kept = self._boards.get(key)
        if kept is None or (kept[0] is not measurement and kept[0] != measurement):
            board = Board(measurement)
            kept = (measurement, board, _drawn(board))
            with self._lock:
                self._boards[key] = kept
                while len(self._boards) > _KEPT_BOARDS:
                    self._boards.popitem(last=False)
        return kept[1], kept[2]

    def _beside(self, view: View, measurement: Measurement, listed: tuple[Listed, ...]) -> str:
        if not view.beside or view.beside == measurement.id:
            return ""
        row = next((row for row in listed if row.id == view.beside), None)
        other = self._desk.measurements.measurement(view.beside) if row else None
        if other is None:
            return '<p class="notice warn">The measurement to compare with is no longer there.</p>'
        return side_by_side(measurement, other)

    def _buttons(self, measurement: Measurement, foreign: bool) -> parts.Buttons:
        """Buttons that depend on what is in use now; another machine's winner is none of this one's."""

        def buttons(act: str, key: str) -> str:
            result = None if foreign else measurement.lane(key)
            if result is None:
                return ""
            target = result.lane.target
            if act == "use":
                in_use = self._desk.measurements.preferred(target.model) == target.spelling
                return progress.use_button(key, in_use)
            spec = self._desk.manager.specs.get(target.engine)
            tunable = spec is not None and len(candidates(spec, target.device)) > 1
            kept = self._tuning.tunings(target)
            return progress.tuner(key, self._tuning.view(target), kept, tunable and not self._busy())

        return buttons


def _ended(watch: Watch | None, view: View) -> str:
    if watch is None or view.shown not in ("", watch.measurement.id):
        return ""
    return progress.ended(watch)


def _drawn(board: Board) -> dict[str, str]:
    return {
        "figures": parts.figures(board),
        "charts": parts.sweeps(board) + parts.over_time(board),
        "passes": "".join(
            draw(board)
            for draw in (
                passes.ledger,
                passes.race_tax,
                passes.foreground_tax,
                passes.energy,
                passes.limit,
                passes.quality,
            )
        )
        + passes.foreign(board.measurement.foreign),
        "where": parts.fingerprint(board) + parts.notes(board),
        "contract": parts.contract(board),
    }


def _mark(html: str) -> str:
    return hashlib.blake2b(html.encode("utf-8", "replace"), digest_size=8).hexdigest()
