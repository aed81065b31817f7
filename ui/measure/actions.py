"""What the Measure tab's buttons do: check what came in, hand it to the desk, say in a sentence what cannot be done.

No painting and no Gradio in here.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from engines.measure import document, foreign, suites
from engines.measure.privacy import model_name
from engines.measure.records import LaneResult, Measurement, Suite
from engines.protocol import Target
from engines.toolkit import text_files
from storage.measurements import DECODE, MEASURED, PREFILL
from storage.store import Store
from ui import format as fmt
from ui.measure import files
from ui.measure.board import lengths
from ui.measure.desk import Desk
from ui.measure.estimate import estimate, rates_in
from ui.measure.tuning import TuningWork

MOST_FILE_BYTES = 200_000_000
DEEPEST_SWEEP = 32_768
JOBS = (DECODE, PREFILL, MEASURED)
"""What a lane can have been tuned for: long answers, long prompts, or as a measurement had it."""


class Refused(ValueError):  # noqa: N818 - it is no error of the program's
    """What was asked for cannot be done; the message is for the person."""


class Actions:
    """One method per thing a person can do."""

    def __init__(self, desk: Desk, store: Store, library: Any):
        self.desk, self.store, self.library = desk, store, library
        self.tuning = TuningWork(desk)
        self._exports = tempfile.TemporaryDirectory(prefix="backend-arena-", ignore_cleanup_errors=True)

    # --- choosing --------------------------------------------------------------------------------------

    def models(self) -> list[tuple[str, str]]:
        return [(f"{m.title} — {m.note}" if m.note else m.title, m.name) for m in self.library.models()]

    def offered(self, model: str) -> list[str]:
        """Spellings of every lane that can run here."""
        return [target.spelling for target in self.desk.targets(_named(model))]

    def variants(self, model: str) -> list[tuple[str, str]]:
        """(label, spelling) of the lanes with other weights than the usual ones."""
        return [
            (f"{self.label(target.spelling, model)} — {why}" if why else target.spelling, target.spelling)
            for target, why in self.desk.variants(_named(model))
        ]

    def usual(self, offered: Sequence[str]) -> list[str]:
        """One lane per engine and device, at its default precision: what is chosen before anybody chooses."""
        first: dict[str, str] = {}
        for spelling in offered:
            first.setdefault(spelling.rpartition("/")[0], spelling)
        return list(first.values())

    def label(self, spelling: str, model: str) -> str:
        tuned = self.desk.measurements.tuned(Target.parse(spelling, _named(model)))
        return f"{spelling} (tuned)" if tuned else spelling

    def suite(self, name: str, own: Suite | None, repeats: Any) -> Suite:
        """The chosen suite with so many repeats; raises Refused."""
        count = int(repeats) if isinstance(repeats, (int, float)) and repeats >= 1 else 5
        if name == "own":
            if own is None:
                raise Refused(
                    'Choose a file: one JSON object a line, with at least {"prompt": …}; "new_tokens", '
                    '"prompt_tokens" and "name" where you like.'
                )
            return suites.with_repeats(own, count)
        if name == "sweep":
            return suites.with_repeats(suites.sweep(DEEPEST_SWEEP), count)
        return suites.with_repeats(suites.named(name), count)

    def read_suite(self, path: str | None) -> Suite:
        """A person's own suite; raises SuiteError without the folder that the browser's file lies in."""
        if not path:
            raise Refused("No file was chosen.")
        try:
            return suites.from_file(Path(path))
        except suites.SuiteError as error:
            raise Refused(str(error).replace(path, Path(path).name)) from error

    def about(self, suite: Suite) -> str:
        """What a suite asks, in a line."""
        shown = suite.cases[:8]
        cases = "; ".join(f"{case.title} {lengths(case)}" for case in shown)
        more = f"; and {len(suite.cases) - len(shown)} more" if len(suite.cases) > len(shown) else ""
        few = " Fewer than 5 repeats give no interval worth the name." if suite.repeats < 5 else ""
        return f"{cases}{more} (prompt → new tokens).{few}"

    def estimate(self, model: str, chosen: Sequence[str], suite: Suite) -> str:
        """How long it will take, before it starts."""
        if not chosen:
            return "Choose one lane or more."
        targets = [Target.parse(spelling, _named(model)) for spelling in chosen]
        return estimate(targets, suite, rates_in(self.store)).text

    # --- measuring -------------------------------------------------------------------------------------

    def start(self, model: str, chosen: Sequence[str], suite: Suite, keep_loaded: bool) -> None:
        """Raises DeskError or Refused."""
        if self.tuning.busy:
            raise Refused("A lane is being tuned: one at a time has the machine. Wait until it is done.")
        named = _named(model)
        targets = [Target.parse(spelling, named) for spelling in chosen]
        self.desk.start(named, targets, suite, keep_loaded=keep_loaded)

    def do(self, act: str, value: str, shown: Measurement | None) -> str | None:
        """A button in the page's slots. Returns the id of the measurement to look at now; None: the same."""
        session = self.desk.session
        if act in ("pause", "go-on", "stop"):
            if session is not None:
                {"pause": session.pause, "go-on": session.go_on, "stop": session.stop}[act]()
            return None
        if act == "resume":
            self.desk.resume(value)
            return ""
        if act == "show":
            return value
        if act == "delete":
            self.desk.measurements.delete(value)
            return "" if shown is not None and shown.id == value else None
        target = self._lane(shown, value).lane.target
        if act == "stop-tuning":
            self.tuning.stop(target)
        for job in JOBS:
            if act == f"tune-{job}" and (said := self.tuning.start(target, job)):
                raise Refused(said)
            if act == f"use-tuning-{job}":
                self.tuning.use(target, job)
            if act == f"untune-{job}":
                self.tuning.take_back(target, job)
        return None

    def use(self, shown: Measurement | None, key: str) -> Target:
        """Make a lane its model's first panel, with exactly the settings that were measured."""
        result = self._lane(shown, key)
        target, settings = result.lane.target, dict(result.lane.settings)
        self.desk.measurements.use_settings(target, settings)
        self.desk.measurements.prefer(target)
        return target

    def _lane(self, shown: Measurement | None, key: str) -> LaneResult:
        result = shown.lane(key) if shown is not None else None
        if result is None:
            raise Refused("This lane is no longer shown here; look again.")
        return result

    # --- files -----------------------------------------------------------------------------------------

    def found(self, measurement_id: str) -> Measurement | None:
        return self.desk.measurements.measurement(measurement_id)

    def comparable(self) -> list[tuple[str, str]]:
        """(label, id) of everything that can be set beside."""
        return [
            (f"{fmt.when(row.created_at)} · {model_name(row.model)} · {row.suite}"
             + (f" · {row.imported_from}" if row.imported_from else ""), row.id)
            for row in self.desk.measurements.listed()
        ]  # fmt: skip

    def report(
        self, measurement: Measurement | None, kind: str, private: bool, beside: Measurement | None
    ) -> Path:
        """A file in a private folder that goes with the app; raises Refused."""
        if measurement is None:
            raise Refused("Show a measurement first.")
        try:
            text = files.text_of(measurement, kind, private=private, beside=beside)
        except ValueError as error:
            raise Refused(str(error)) from error
        day = re.sub(r"[^\d-]", "", measurement.created_at[:10])  # a file may say anything there
        path = Path(tempfile.mkdtemp(dir=self._exports.name)) / f"backend-arena-measurement-{day}.{kind}"
        path.write_text(text, encoding="utf-8", errors="replace", newline="")
        return path

    def bring_in(self, path: str | None, shown: Measurement | None) -> tuple[str, str | None]:
        """Another machine's measurement, or another benchmark's rows. What to say, and what to look at now."""
        if not path:
            raise Refused("No file was chosen.")
        text = self._text(Path(path))
        try:
            measurement = document.loads(text)
        except document.DocumentError as error:
            return self._foreign(text, shown, error)
        fresh = self.desk.measurements.bring_in(measurement)
        count = fmt.counted(len(measurement.measured), "lane")
        said = f"{count} of {model_name(measurement.model)} brought in." if fresh else "It is here already."
        return said, measurement.id

    def _text(self, path: Path) -> str:
        try:
            if path.stat().st_size > MOST_FILE_BYTES:
                raise Refused(f"The file has {fmt.size(path.stat().st_size)}; no measurement is that large.")
            return text_files.read(path)
        except (OSError, UnicodeError) as error:
            raise Refused(f"{path.name} cannot be read as text.") from error

    def _foreign(self, text: str, shown: Measurement | None, error: Exception) -> tuple[str, str | None]:
        try:
            rows = foreign.read(text)
        except foreign.ForeignError as problem:
            raise Refused(f"{error} {problem}") from problem
        if shown is None:
            raise Refused("Show the measurement that these rows are to stand beside first.")
        session = self.desk.session
        if session is not None and self.desk.busy and session.measurement.id == shown.id:
            raise Refused("Wait until the measurement is finished; then add other benchmarks' rows to it.")
        fresh = [row for row in rows if row not in shown.foreign]
        if not fresh:
            return "These rows stand beside it already.", shown.id
        self.desk.measurements.amend(replace(shown, foreign=(*shown.foreign, *fresh)))
        return f"{fmt.counted(len(fresh), 'row')} added, under {fresh[0].contract}.", shown.id


def _named(model: str | None) -> str:
    name = (model or "").strip()
    if not name:
        raise Refused("Choose a model.")
    return name
