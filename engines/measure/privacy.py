"""What leaves this computer in a report: no path, no name, no prompt of the person, unless they ask for it.

Reports are made to be published. The figures, the hardware and the packages stay; folders become their last part, the
computer's name goes, and a person's own prompts go with the titles they gave them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from engines.measure.records import Case, LaneResult, Measurement, Quality, Repeat, Suite

_PATH = re.compile(
    r"""(?<=["'`])(?:[A-Za-z]:)?[\\/](?!/)[^"'`\r\n]*[\\/][^"'`\r\n]+(?=["'`])  # in quotes: whatever it holds
    | (?<![\w.:/\\])(?:file://(?=/)|\\\\[?.]\\)?(?:
        [A-Za-z]:[\\/](?:[^\\/:*?"<>|\r\n]+[\\/])*  # Windows: folders may hold spaces
      | \\\\(?:[^\\/:*?"<>|\r\n]+\\)+             # a share
      | (?:/mnt/\w)?/(?:home|Users|media|run/media|Volumes)/[^/\r\n]+/(?:[^\s/]+/)*  # so may a person's name
      | (?:~|/[^\s/"'<>|,;()]+)/(?:[^\s/"'<>|,;()]+/)*
    )[^\s\\/:*?"'<>|,;()]*""",
    re.VERBOSE,
)
"""An absolute path of any system with a folder in it; `openvino-genai/CPU/int4` and `org/model` are none."""
_HOME = re.compile(r"(?:[A-Za-z]:|/mnt/\w)?[\\/](?:home|Users)[\\/][^\\/]+", re.IGNORECASE)
"""A home folder itself: its last part is somebody's name."""
NAMES = ("name", "host", "hostname", "node", "user")
PROGRAMS = "other_programs"
"""In the environment: what else the person had running."""
OWN = "own"


def without_private(measurement: Measurement) -> Measurement:
    """The measurement as it may be published; what it says about speed is untouched."""
    suite, names = _suite(measurement.suite)
    machine = {key: value for key, value in measurement.machine.items() if key not in NAMES}
    environment = {key: value for key, value in measurement.environment.items() if key != PROGRAMS}
    lanes = tuple(_lane(result, names) for result in measurement.lanes)
    bare = replace(measurement, suite=suite, machine=machine, environment=environment, lanes=lanes)
    models = {measurement.model, *(result.lane.target.model for result in measurement.lanes)}
    folders = {model: last_part(model) for model in models if _is_path(model)}
    return _clean(bare, {**folders, str(Path.home()): "~"})


def _is_path(model: str) -> bool:
    """Whether a model is a folder, on whatever system it was measured; `org/name` is none."""
    return (
        model.startswith(("/", "~", ".", "\\")) or bool(re.match(r"[A-Za-z]:[\\/]", model)) or "\\" in model
    )


def _suite(suite: Suite) -> tuple[Suite, Mapping[str, str]]:
    """A person's own cases are numbered; built-in ones keep their names. Also: old name -> new name."""
    names: dict[str, str] = {}
    cases: list[Case] = []
    for number, case in enumerate(suite.cases, 1):
        if case.category != OWN and case.text is None:
            cases.append(case)
            continue
        names[case.name] = f"own-{number}"
        cases.append(replace(case, name=names[case.name], title=f"Own prompt {number}", text=None))
    return replace(suite, cases=tuple(cases), title="Own prompts" if names else suite.title), names


def _lane(result: LaneResult, names: Mapping[str, str]) -> LaneResult:
    failure = replace(result.failure, details=None) if result.failure else None
    return replace(
        result, failure=failure, repeats=tuple(_repeat(repeat, names) for repeat in result.repeats)
    )


def _repeat(repeat: Repeat, names: Mapping[str, str]) -> Repeat:
    failure = replace(repeat.failure, details=None) if repeat.failure else None
    return replace(repeat, case=names.get(repeat.case, repeat.case), failure=failure)


def last_part(path: str) -> str:
    """`/home/me/models/phi` -> `phi`."""
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1]


def _short(path: str) -> str:
    return "~" if _HOME.fullmatch(path) else last_part(path)


def _clean(value: Any, known: Mapping[str, str]) -> Any:
    """Every text in it with its paths cut to their last part; `known` paths first, which may hold spaces."""
    if isinstance(value, str):
        for path, name in known.items():
            value = value.replace(path, name)
        return _PATH.sub(lambda found: _short(found.group()), value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _clean(getattr(value, f.name), known) for f in fields(value)})
    if isinstance(value, Mapping):
        return {key: _clean(item, known) for key, item in value.items()}
    if isinstance(value, tuple):
        return (
            value if value and isinstance(value[0], float) else tuple(_clean(item, known) for item in value)
        )
    return [_clean(item, known) for item in value] if isinstance(value, list) else value


def model_name(model: str) -> str:
    """The name of a model: of a folder its last part."""
    return last_part(model) if _is_path(model) else model


def without_texts(measurement: Measurement) -> Measurement:
    """The same figures without any prompt of the person's or reply of a model, for who keeps numbers only."""
    cases = tuple(replace(case, text=None) for case in measurement.suite.cases)
    lanes = tuple(replace(result, quality=_without_replies(result.quality)) for result in measurement.lanes)
    return replace(measurement, suite=replace(measurement.suite, cases=cases), lanes=lanes)


def _without_replies(quality: Quality | None) -> Quality | None:
    if quality is None:
        return None
    return replace(
        quality, answers=tuple(replace(answer, text=None, token_ids=()) for answer in quality.answers)
    )
