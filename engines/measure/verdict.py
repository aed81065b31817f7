"""Which lane for which job: a rule of a few lines that anyone can recompute from the stored repeats.

1. A lane can win if it ran to the end on the device that was asked for, delivered every token that it was asked for
   from the prompt that all others got, at a rate the memory can deliver, and passed the quality gate.
2. Of those, the one with the best median of the job's figure leads.
3. It wins if its 95 % interval lies apart from all others' and its median is 3 % or more ahead of the next; else
   nobody.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from engines.measure.records import (
    HIGHER_IS_BETTER,
    Case,
    Figure,
    LaneResult,
    Measurement,
    Verdict,
)
from engines.measure.spread import LEAST_REPEATS, apart, case_figures, counted, figure
from engines.measure.words import number, percent

LEAST_DIFFERENCE = 0.03
"""Two medians closer than this are the same for a person, and within what a lone lane varies from day to day."""
READING_TOK_S = 5.0
"""About as fast as people read: a lane that works in the background need not be faster, but not slower either."""


@dataclass(frozen=True)
class Job:
    """What a person wants a lane for, and the figure that decides."""

    name: str
    title: str
    metric: str
    case: str | None
    """Which case decides: `shortest` or `longest` prompt; None: the figure belongs to no case."""
    least_tok_s: float | None = None


JOBS = (
    Job("short-chat", "Short chat", "answer_s", "shortest"),
    Job("long-document", "Long document", "answer_s", "longest"),
    Job("background", "Always on in the background", "foreground_tax", None, READING_TOK_S),
    Job("battery", "On battery", "joules_per_token", "shortest"),
)
METRIC_TITLES = {
    "answer_s": "time to the whole answer",
    "ttft_s": "time to first token",
    "decode_tok_s": "decode rate",
    "prefill_tok_s": "prefill rate",
    "itl_p95_s": "95th percentile of the gaps between tokens",
    "foreground_tax": "slow-down of other programs",
    "joules_per_token": "energy per token",
}


def verdicts(measurement: Measurement) -> tuple[Verdict, ...]:
    """One verdict per job."""
    return tuple(verdict_for(job, measurement) for job in JOBS)


def job_case(job: Job, measurement: Measurement) -> Case | None:
    """The case that decides a job: the shortest or the longest prompt that a lane finished which can win.

    Where none can, any lane's: there is something to show then, and nobody to recommend.
    """
    lanes = measurement.measured
    able = [result for result in lanes if excluded(result, measurement) is None] or lanes
    finished = [
        case for case in measurement.suite.cases if any(counted(result.repeats, case.name) for result in able)
    ]
    if job.case is None or not finished:
        return None
    pick: Callable[..., Case] = min if job.case == "shortest" else max
    return pick(finished, key=lambda case: prompt_length(case, measurement))


def prompt_length(case: Case, measurement: Measurement) -> int:
    """Tokens of a case's prompt; of one that is taken whole, as the lanes counted them."""
    if case.prompt_tokens:
        return case.prompt_tokens
    seen = (repeat for result in measurement.lanes for repeat in counted(result.repeats, case.name))
    return max((repeat.prompt_tokens or 0 for repeat in seen), default=0)


def excluded(result: LaneResult, measurement: Measurement) -> str | None:
    """Why a lane cannot win whatever the job; None when it can."""
    if result.failure is not None:
        return f"failed: {result.failure.message.rstrip('.')}"
    if result.reference_only:
        return "only measured as the reference for the others' answers"
    if not result.asked_device:
        return _misplaced(result)
    refused = next((repeat.refused for repeat in result.repeats if repeat.refused), None)
    if refused:
        return f"refused: {refused}"
    if not any(repeat.counts for repeat in result.repeats):
        disturbed = any(repeat.disturbed for repeat in result.repeats)
        return "every repeat was disturbed by other programs" if disturbed else "no repeat was finished"
    if result.quality is None:
        return "its answers have not been checked yet"
    if not result.quality.passed:
        return f"failed the quality gate: {'; '.join(result.quality.reasons)}"
    return None


def _misplaced(result: LaneResult) -> str:
    wanted, evidence = result.lane.target.device, (result.placement or {}).get("evidence")
    if result.device == wanted and isinstance(evidence, list) and evidence:
        return f"did not run on {wanted}: {str(evidence[-1]).rstrip('.')}"
    return f"ran on {result.device}, not on {wanted}"


def job_figure(result: LaneResult, job: Job, case: Case | None) -> Figure | None:
    """The figure that decides, of one lane; None when it was not measured."""
    if job.metric == "foreground_tax":
        return figure(result.foreground.taxes) if result.foreground else None
    return case_figures(result.repeats, case.name).get(job.metric) if case else None


def verdict_for(job: Job, measurement: Measurement) -> Verdict:
    """The verdict for one job."""
    case = job_case(job, measurement)
    out: dict[str, str] = {}
    figures: dict[str, Figure] = {}
    for result in measurement.measured:
        reason, made = excluded(result, measurement), job_figure(result, job, case)
        if reason is None and made is None:
            reason = _not_measured(job, measurement)
        if reason is None and job.least_tok_s is not None:
            reason = _too_slow(result, measurement, job.least_tok_s)
        if reason is not None or made is None:
            out[result.lane.key] = reason or _not_measured(job, measurement)
        else:
            figures[result.lane.key] = made
    better = -1 if job.metric in HIGHER_IS_BETTER else 1
    ranking = sorted(figures, key=lambda key: better * figures[key].median)
    return _decide(job, case, measurement, ranking, figures, out)


def _decide(
    job: Job,
    case: Case | None,
    measurement: Measurement,
    ranking: list[str],
    figures: dict[str, Figure],
    out: dict[str, str],
) -> Verdict:
    first = ranking[0] if ranking else None
    second = ranking[1] if len(ranking) > 1 else None
    winner, by, confidence = first, None, "only" if first else "none"
    what = METRIC_TITLES[job.metric] + (f", {case.title.lower()}" if case else "")
    because = []
    if first is None:
        because.append(_nobody(out))
    elif second is None:
        because.append(f"{first} is the only lane that can win ({what}: {_spelled(job, figures[first])}).")
    else:
        best, next_best = figures[first], figures[second]
        by = _advantage(best.median, next_best.median, job.metric)
        others = {key: figures[key] for key in ranking[1:]}
        clear = _is_clear(best, others, by)
        winner, confidence = (first, "clear") if clear else (None, "unclear")
        because.append(
            f"{what[0].upper() + what[1:]}: {first} {_spelled(job, best)}, "
            f"{second} {_spelled(job, next_best)}."
        )
        because.append(_clearness(best, others, by, clear, job.metric))
    because += [f"{key} cannot win: {reason}." for key, reason in out.items() if first or not _shared(out)]
    return Verdict(
        job=job.name,
        title=job.title,
        winner=winner,
        by=by,
        confidence=confidence,
        because=tuple(because),
        would_change=_would_change(job, case, measurement, ranking, figures, out, winner),
        runner_up=second,
        metric=job.metric,
        ranking=tuple(ranking),
        excluded=out,
    )


def _advantage(best: float, next_best: float, metric: str) -> float | None:
    """How much better: 0.14 is 14 %; of shares, the difference."""
    if metric == "foreground_tax":
        return next_best - best
    over, under = (best, next_best) if metric in HIGHER_IS_BETTER else (next_best, best)
    return over / under - 1 if under > 0 else None


def advantage_text(by: float, metric: str, digits: int = 0) -> str:
    """`14 %`; of shares, which are percentages themselves, `14 points`."""
    return f"{100 * by:.{digits}f} points" if metric == "foreground_tax" else percent(by, digits=digits)


def _is_clear(best: Figure, others: Mapping[str, Figure], by: float | None) -> bool:
    """`others`: the runner-up first. One behind it whose values scatter widely may be better as well."""
    next_best = next(iter(others.values()))
    enough = min(best.n, next_best.n) >= LEAST_REPEATS
    known = enough and by is not None and by >= LEAST_DIFFERENCE
    return known and all(apart(best, other) for other in others.values())


def _clearness(best: Figure, others: Mapping[str, Figure], by: float | None, clear: bool, metric: str) -> str:
    next_best = next(iter(others.values()))

    def told(gain: float, digits: int = 0) -> str:
        return advantage_text(gain, metric, digits)

    if clear:
        return f"Their 95 % intervals lie apart, and {told(by or 0)} is a difference one notices."
    if min(best.n, next_best.n) < LEAST_REPEATS:
        return f"No clear winner: fewer than {LEAST_REPEATS} undisturbed repeats are no basis."
    if not apart(best, next_best):
        return "No clear winner: their 95 % intervals overlap."
    if by is None:
        return "No clear winner: how much better than the runner-up cannot be said of 0."
    wide = next((key for key, other in others.items() if not apart(best, other)), None)
    if by >= LEAST_DIFFERENCE and wide is not None:
        return f"No clear winner: the 95 % interval of {wide} overlaps the leader's."
    # Rounded up, 2.96 % would be less than 3 %, and said to be 3.0 %.
    gain = math.floor(round(1000 * by, 6)) / 1000
    return f"No clear winner: {told(gain, 1)} is less than the {told(LEAST_DIFFERENCE)} one would notice."


def _spelled(job: Job, made: Figure) -> str:
    scale, unit = {
        "answer_s": (1.0, "s"),
        "foreground_tax": (100.0, "%"),
        "joules_per_token": (1.0, "J"),
    }.get(job.metric, (1.0, ""))
    low, median, high = (value * scale for value in (made.low, made.median, made.high))
    return f"{number(median, 3)} {unit} ({number(low, 3)}–{number(high, 3)})"


def _not_measured(job: Job, measurement: Measurement) -> str:
    told = any(repeat.energy_j is not None for r in measurement.measured for repeat in r.repeats)
    if job.metric == "joules_per_token" and not told:
        return "energy cannot be measured on this machine"
    return f"its {METRIC_TITLES[job.metric]} was not measured"


def _too_slow(result: LaneResult, measurement: Measurement, least: float) -> str | None:
    rate = decode_rate(result, measurement)
    if rate is None:
        return "its decode rate was not measured"
    return None if rate >= least else f"{rate:.1f} tok/s is slower than people read ({least:.0f} tok/s)"


def _nobody(out: dict[str, str]) -> str:
    reason = _shared(out) if out else "nothing was measured"
    return f"No lane can be recommended: {reason or f'none of the {len(out)} can win'}."


def _shared(out: dict[str, str]) -> str | None:
    """The one reason for which none of them can win; None: there are several."""
    return next(iter(out.values())) if len(set(out.values())) == 1 else None


def _would_change(
    job: Job,
    case: Case | None,
    measurement: Measurement,
    ranking: list[str],
    figures: dict[str, Figure],
    out: dict[str, str],
    winner: str | None,
) -> tuple[str, ...]:
    found = []
    if winner is None and len(ranking) > 1:
        found.append("More repeats would narrow the intervals; or choose by memory and start-up time.")
    leader = figures[ranking[0]] if ranking else None
    for result in measurement.measured:
        made = job_figure(result, job, case)
        ahead = _advantage(made.median, leader.median, job.metric) if made and leader else None
        if result.lane.key in out and ahead is not None and ahead > LEAST_DIFFERENCE:
            found.append(
                f"{result.lane.key} would lead by {advantage_text(ahead, job.metric)} if it had not "
                f"{_short(out[result.lane.key])}."
            )
    if winner is not None and case is not None:
        found += _starts_sooner(measurement, winner, ranking[1:], case)
    power = measurement.environment.get("power")
    if power == "mains":
        found.append("It was measured on mains; on battery clocks are lower: measure again there.")
    if job.metric == "joules_per_token" and not ranking:
        found.append("A machine that tells its energy (RAPL, NVML, a battery that discharges).")
    found.append("Another driver, package version, model or precision: measure again after an update.")
    return tuple(found)


def _short(reason: str) -> str:
    return reason if reason.startswith(("failed", "ran", "refused")) else f"been left out ({reason})"


def _starts_sooner(measurement: Measurement, winner: str, others: list[str], case: Case) -> list[str]:
    leading = measurement.lane(winner)
    found = []
    for key in others:
        other = measurement.lane(key)
        after = overtakes_after(leading, other, case) if leading and other else None
        if after is not None and after > 1:
            found.append(f"For fewer than {after} prompts {key} is done sooner: it starts faster.")
    return found


def overtakes_after(fast: LaneResult, soon: LaneResult, case: Case) -> int | None:
    """After how many prompts `fast`, which starts later, has overtaken `soon`; None: never, or not known."""
    answers = [case_figures(result.repeats, case.name).get("answer_s") for result in (fast, soon)]
    starts = [result.ledger.start_s for result in (fast, soon)]
    if None in answers or None in starts:
        return None
    gain = answers[1].median - answers[0].median  # type: ignore[union-attr]
    delay = starts[0] - starts[1]  # type: ignore[operator]
    if gain <= 0:
        return None
    return max(1, math.ceil(delay / gain - 1e-6))


def decode_rate(result: LaneResult, measurement: Measurement) -> float | None:
    """Median decode rate in the case with the shortest prompt that the lane finished."""
    for case in sorted(measurement.suite.cases, key=lambda case: prompt_length(case, measurement)):
        made = case_figures(result.repeats, case.name).get("decode_tok_s")
        if made is not None:
            return made.median
    return None


def share_of_limit(result: LaneResult, measurement: Measurement) -> float | None:
    """Weight bytes per token × decode rate ÷ measured bandwidth: 1 is all that the memory can do."""
    rate = decode_rate(result, measurement)
    if rate is None or result.read_bytes_per_token is None or not result.bandwidth_bytes_s:
        return None
    return result.read_bytes_per_token * rate / result.bandwidth_bytes_s
