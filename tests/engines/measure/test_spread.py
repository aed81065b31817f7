"""The statistics, against scipy on known samples."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from engines.measure import spread
from engines.measure.records import Repeat

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


def test_the_other_benchmarks_formulas_give_what_the_documentation_says():
    """docs/measure.md applies them to one set of offsets; so does this, without our code."""
    t, prompt = (0.40, 0.48, 0.56, 0.66, 0.74), 128
    ours = Repeat("x", 1, token_offsets_s=t, prompt_tokens=prompt)
    gaps = [later - earlier for earlier, later in itertools.pairwise(t)]
    said = (Path(__file__).parents[3] / "docs" / "measure.md").read_text(encoding="utf-8")
    second_token_rate = (len(t) - 1) / (t[-1] - t[0])
    assert ours.decode_tok_s == pytest.approx(second_token_rate)
    assert 1000 / (1000 * np.mean(gaps)) == pytest.approx(second_token_rate)  # llm_bench
    for figure in (
        f"{ours.ttft_s:.3f} s; {ours.decode_tok_s:.2f} tok/s",
        f"{1000 * t[0]:.0f} ms; {1000 * np.mean(gaps):.0f} ms ({second_token_rate:.2f} tok/s); "
        f"{1000 * t[-1] / len(t):.0f} ms",
        f"{prompt / t[0]:.1f} tok/s; {second_token_rate:.2f} tok/s; {(prompt + len(t)) / t[-1]:.1f} tok/s",
    ):
        assert figure in said
