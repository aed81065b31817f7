"""The statistics, against scipy on known samples."""

import numpy as np
import pytest
from scipy import stats

from engines.measure import spread

SAMPLES = (
    [10.0, 10.2, 9.9, 10.1, 10.4],
    [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 100.0],
    [3.5, 3.5, 3.5, 3.5],
    list(np.random.default_rng(7).lognormal(1, 0.3, 25)),
)


@pytest.mark.parametrize("sample", SAMPLES)
def test_median_quartiles_and_interval_are_scipys(sample):
    made = spread.figure(sample)
    assert made.median == pytest.approx(np.median(sample))
    assert made.q3 - made.q1 == pytest.approx(stats.iqr(sample))
    theirs = stats.bootstrap(
        (np.array(sample),),
        np.median,
        n_resamples=20_000,
        method="percentile",
        random_state=np.random.default_rng(1),
    ).confidence_interval
    spacing = (max(sample) - min(sample)) / 10 + 1e-12  # two random draws of the same thing
    assert made.low == pytest.approx(theirs.low, abs=spacing)
    assert made.high == pytest.approx(theirs.high, abs=spacing)


def test_whoever_has_the_values_gets_the_same_interval_in_whatever_order():
    assert spread.figure([3, 1, 2, 9, 4]) == spread.figure([9, 4, 3, 2, 1])


def test_two_values_have_no_interval_but_their_ends():
    made = spread.figure([2.0, 4.0])
    assert (made.median, made.low, made.high, made.n) == (3.0, 2.0, 4.0, 2)
    assert spread.figure([]) is None


def test_the_interval_covers_the_true_median_as_often_as_it_says():
    draws = np.random.default_rng(3).normal(20, 1, (200, 25))
    inside = sum(low <= 20 <= high for low, high in map(spread.interval, draws))
    assert inside / len(draws) == pytest.approx(0.95, abs=0.06)


def test_the_geometric_mean_is_scipys():
    assert spread.geometric_mean([2.0, 8.0, 5.0]) == pytest.approx(stats.gmean([2.0, 8.0, 5.0]))
    assert spread.geometric_mean([1.0, 0.0]) is None
