"""The live strip: a small chart per device and per worker over the last minutes, a mark at each run's start and end.

Drawn on the server as inline SVG from the sampler's readings, at most once per sample for all pages together; the
figures stand beside the charts in words, so nothing is told by a line alone.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from engines.telemetry.sampler import KEPT_S, Mark, Sample, Sampler
from ui import format as fmt

WIDTH, HEIGHT = 180, 34
STEP_S = 1.5
"""One point of a line stands for so long: a chart is 180 pixels wide."""
GAP_S = 4.0
"""Where no sample was taken for longer, the line is broken."""
MOST_WORKERS = 8

Value = Callable[[Sample], float | None]


@dataclass(frozen=True)
class Line:
    """One line of a chart, from 0 to `top`."""

    kind: str
    """Its CSS class."""
    name: str
    """What it shows; the same name at every drawing, and no other line's."""
    value: Value
    top: float = 1.0


@dataclass(frozen=True)
class Chart:
    """One chart: a title, what it says now, and one or two lines."""

    title: str
    now: str
    lines: tuple[Line, ...]
    source: str


class Strip:
    """The strip as HTML, made once per sample."""

    def __init__(self, sampler: Sampler):
        self._sampler = sampler
        self._lock = threading.Lock()
        self._made: dict[bool, tuple[int, str]] = {}
        self._means: dict[str, _Means] = {}

    def html(self, *, hide_workers: bool = False) -> str:
        """The strip as it is now; `hide_workers`: while the comparison is blind."""
        self._sampler.look()
        with self._lock:
            version = self._sampler.version
            made = self._made.get(hide_workers)
            if made is None or made[0] != version:
                made = (version, self._draw(hide_workers))
                self._made[hide_workers] = made
            return made[1]

    def _draw(self, hide_workers: bool) -> str:
        samples = self._sampler.samples()
        if not samples:
            return '<p class="empty-line">The first readings are on their way.</p>'
        names = {} if hide_workers else self._sampler.worker_names()
        charts = [*_system_charts(samples), *_device_charts(samples), *_worker_charts(samples, names)]
        kept = self._means
        self._means = dict(kept) if hide_workers else {}  # what is only hidden is not forgotten
        for chart in charts:
            for line in chart.lines:
                means = self._means[line.name] = kept.get(line.name) or _Means()
                means.take(samples, line.value)
        marks = self._sampler.marks()
        drawn = "".join(_chart(chart, samples[-1].at_s, self._means, marks) for chart in charts)
        return f'<div class="strip">{drawn}</div>{_facts(samples[-1])}'


class _Means:
    """A line's points: the mean of what was read in each STEP_S, worked out once for each that is over."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[float, float]] = {}
        """Number of the step -> moment of its first reading, and the mean."""
        self._over = -1
        """The newest step to which nothing can be added."""

    def take(self, samples: Sequence[Sample], value: Value) -> None:
        """Bring it up to the newest sample, and forget what is older than the oldest."""
        steps: dict[int, list[tuple[float, float]]] = {}
        for sample in reversed(samples):
            step = int(sample.at_s // STEP_S)
            if step <= self._over:
                break
            figure = value(sample)
            if figure is not None:
                steps.setdefault(step, []).append((sample.at_s, figure))
        for step in sorted(steps):
            read = steps[step]
            self._found[step] = (read[-1][0], sum(figure for _, figure in read) / len(read))
        oldest = int(samples[0].at_s // STEP_S)
        for step in [step for step in self._found if step < oldest]:
            del self._found[step]
        self._over = int(samples[-1].at_s // STEP_S) - 1

    def points(self) -> list[tuple[float, float]]:
        """Moment and figure, the oldest first."""
        return list(self._found.values())


def _reading(name: str) -> Value:
    def value(sample: Sample) -> float | None:
        found = sample.readings.get(name)
        return None if found is None else found.value

    return value


def _system_charts(samples: Sequence[Sample]) -> list[Chart]:
    newest, cores = samples[-1], os.cpu_count() or 1
    cpu, others, memory = (_reading(name) for name in ("cpu", "others", "memory"))
    used = _reading("memory used")(newest)
    foreign = others(newest)
    return [
        Chart(
            "Processor",
            f"{_percent(cpu(newest))}"
            + (f", other programs {foreign:.2f} cores" if foreign is not None else ""),
            (Line("all", "cpu", cpu), Line("others", "others", others, cores)),
            "psutil; the lower line: other programs",
        ),
        Chart(
            "Memory",
            f"{_percent(memory(newest))} ({fmt.size(used)})",
            (Line("all", "memory", memory),),
            "psutil",
        ),
    ]


def _device_charts(samples: Sequence[Sample]) -> list[Chart]:
    charts = []
    for device in samples[-1].devices:
        if device.kind == "power":
            highest = max((_watts(device.name)(sample) or 0.0 for sample in samples), default=0.0)
            now = f"{device.watts:.1f} W" if device.watts is not None else fmt.MISSING
            charts.append(
                Chart(
                    f"Power {device.name}",
                    now,
                    (Line("all", f"watts {device.name}", _watts(device.name), highest or 1.0),),
                    device.source,
                )
            )
            continue
        busy = _busy(device.name)
        words = [_percent(busy(samples[-1]))]
        words += [fmt.size(device.memory_bytes)] if device.memory_bytes else []
        words += [f"{device.watts:.0f} W"] if device.watts is not None else []
        words += [f"{device.frequency_mhz:.0f} MHz"] if device.frequency_mhz else []
        line = Line("all", f"busy {device.name}", busy)
        charts.append(Chart(device.name, ", ".join(words), (line,), device.source))
    return charts


def _busy(name: str) -> Value:
    """The whole device where it tells, else what can be seen of it: our own workers."""

    def value(sample: Sample) -> float | None:
        device = next((device for device in sample.devices if device.name == name), None)
        if device is None:
            return None
        return device.busy if device.busy is not None else min(1.0, sum(device.by_pid.values()))

    return value


def _watts(name: str) -> Value:
    return lambda sample: next((device.watts for device in sample.devices if device.name == name), None)


def _worker_charts(samples: Sequence[Sample], names: Mapping[int, str]) -> list[Chart]:
    charts, cores = [], os.cpu_count() or 1
    for pid, name in list(names.items())[:MOST_WORKERS]:
        cpu, rss = _reading(f"worker.{pid}.cpu"), _reading(f"worker.{pid}.rss")
        most = max((rss(sample) or 0.0 for sample in samples), default=0.0) or 1.0
        busy, held = cpu(samples[-1]), rss(samples[-1])
        now = f"{busy:.2f} cores" if busy is not None else fmt.MISSING
        charts.append(
            Chart(
                name.removesuffix(" + demo"),
                f"{now}, {fmt.size(held)}",
                (
                    Line("all", f"worker {pid} cpu", cpu, cores),
                    Line("memory", f"worker {pid} rss", rss, most * 1.1),
                ),
                "its process; the dashed line: memory, up to its highest",
            )
        )
    return charts


def _chart(chart: Chart, end: float, means: Mapping[str, _Means], marks: Sequence[Mark]) -> str:
    lines = "".join(
        f'<path class="{line.kind}" d="{_path(means[line.name].points(), line.top, end)}"/>'
        for line in chart.lines
    )
    label = fmt.text(f"{chart.title}: {chart.now}")
    return (
        f'<figure class="spark" title="{fmt.text(chart.source)}"><figcaption><b>{fmt.text(chart.title)}</b>'
        f"<span>{fmt.text(chart.now)}</span></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" aria-label="{label}">'
        f"{_marks(marks, end)}{lines}</svg></figure>"
    )


def _marks(marks: Sequence[Mark], end: float) -> str:
    """A line at each run's start, a dashed one at its end."""
    drawn = []
    for mark in marks:
        x = _x(mark.at_s, end)
        if 0 <= x <= WIDTH:
            kind = "starts" if mark.starts else "ends"
            drawn.append(f'<line class="mark {kind}" x1="{x}" x2="{x}" y1="0" y2="{HEIGHT}"/>')
    return "".join(drawn[-60:])


def _x(at_s: float, end: float) -> int:
    return round(WIDTH * (1 - (end - at_s) / KEPT_S))


def _path(points: Sequence[tuple[float, float]], top: float, end: float) -> str:
    """An SVG path through points of moment and figure, broken where there is none for GAP_S; the last one is now."""
    path, last = [], float("-inf")
    for at, (moment, figure) in enumerate(points, 1):
        y = round((HEIGHT - 2) * (1 - min(max(figure / top, 0.0), 1.0))) + 1
        x = WIDTH if at == len(points) and end - moment < GAP_S else _x(moment, end)
        path.append(f"{'M' if moment - last > GAP_S else 'L'}{x} {y}")
        last = moment
    return "".join(path)


def _facts(newest: Sample) -> str:
    """What has no chart of its own, in words: each only where this machine has it."""
    facts = []
    for name, reading in newest.readings.items():
        if reading.unit == "°C":
            facts.append(f"{name} {reading.value:.0f} °C")
        elif name == "clock":
            facts.append(f"clock {reading.value:.0f} MHz")
        elif name in ("battery", "swap"):
            facts.append(f"{name} {_percent(reading.value)}")
    return f'<p class="strip-facts">{fmt.text(" · ".join(facts))}</p>' if facts else ""


def _percent(value: float | None) -> str:
    return fmt.MISSING if value is None else f"{value:.0%}"
