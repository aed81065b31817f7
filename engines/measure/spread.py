"""Median, quartiles and a bootstrap interval: the whole of the statistics, small enough to read.

numpy's quantiles and a percentile bootstrap of the median (Efron, 1979), seeded, so that anyone who has the repeats
gets the same interval. The tests hold it against scipy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from engines.measure.records import METRICS, Figure, Repeat

RESAMPLES = 2000
SEED = 20_240_601
CONFIDENCE = 0.95
LEAST_REPEATS = 3
"""Of fewer no interval is worth its name: it is then from the least to the greatest value."""


def figure(values: Sequence[float]) -> Figure | None:
    """Median, quartiles and the median's 95 % interval; None of no values."""
    import numpy as np

    if not values:
        return None
    sample = np.sort(np.asarray(values, dtype=np.float64))
    q1, median, q3 = (float(value) for value in np.quantile(sample, (0.25, 0.5, 0.75)))
    low, high = interval(sample) if len(sample) >= LEAST_REPEATS else (float(sample[0]), float(sample[-1]))
    return Figure(median, q1, q3, low, high, len(sample))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The middle 95 % of the medians of RESAMPLES samples drawn from `values` with replacement."""
    import numpy as np

    sample = np.sort(np.asarray(values, dtype=np.float64))
    drawn = np.random.default_rng(SEED).choice(sample, (RESAMPLES, len(sample)))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.median(drawn, axis=1), (tail, 1 - tail))
    return float(low), float(high)


def counted(repeats: Sequence[Repeat], case: str) -> tuple[Repeat, ...]:
    """The repeats of a case that figures are made of: finished, complete, possible and undisturbed."""
    return tuple(repeat for repeat in repeats if repeat.case == case and repeat.counts)


def case_figures(repeats: Sequence[Repeat], case: str) -> dict[str, Figure]:
    """Metric -> figure of one case; a metric that nobody measured is left out."""
    found = {}
    for metric in METRICS:
        values = [getattr(repeat, metric) for repeat in counted(repeats, case)]
        made = figure([value for value in values if value is not None])
        if made is not None:
            found[metric] = made
    return found


def apart(one: Figure, other: Figure) -> bool:
    """Whether two intervals leave room between them."""
    return one.high < other.low or other.high < one.low


def geometric_mean(values: Sequence[float]) -> float | None:
    """As MLPerf Client joins its categories; None of no values."""
    if not values or any(value <= 0 for value in values):
        return None
    return math.exp(sum(math.log(value) for value in values) / len(values))
