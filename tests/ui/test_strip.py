"""The strip's lines: the mean of each step, worked out once, the same however often it is drawn."""

import random

import pytest

from engines.telemetry.readings import Reading
from engines.telemetry.sampler import Sample
from ui.strip_html import STEP_S, WIDTH, _Means, _path


def value(sample):
    found = sample.readings.get("cpu")
    return None if found is None else found.value


def made(moments, figures):
    return [
        Sample(at, at, {} if figure is None else {"cpu": Reading("cpu", figure, "share", "test")})
        for at, figure in zip(moments, figures, strict=True)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_drawn_at_every_sample_it_is_what_it_is_drawn_once(seed):
    chance = random.Random(seed)
    at, moments = 1000.0, []
    for _ in range(300):
        at += chance.choice((0.05, 0.5, 0.5, 1.0, 6.0))
        moments.append(at)
    samples = made(moments, [chance.choice((None, chance.random())) for _ in moments])
    often = _Means()
    for number in range(1, len(samples) + 1):
        window = [one for one in samples[:number] if moments[number - 1] - one.at_s <= 180.0]
        if chance.random() < 0.7:  # not every sample is looked at
            often.take(window, value)
    once = _Means()
    often.take(window, value)
    once.take(window, value)
    # The oldest step may be in the window in part: drawn once, it has lost what went before.
    whole_from = (window[0].at_s // STEP_S + 1) * STEP_S
    assert [one for one in often.points() if one[0] >= whole_from] == [
        one for one in once.points() if one[0] >= whole_from
    ]
    steps = {}
    for one in window:
        if value(one) is not None:
            steps.setdefault(int(one.at_s // STEP_S), []).append(value(one))
    means = [sum(read) / len(read) for read in steps.values()]
    assert [figure for _, figure in once.points()] == pytest.approx(means)


def test_the_line_ends_now_and_breaks_where_nothing_was_read():
    path = _path([(100.0, 0.0), (101.5, 0.5), (110.0, 2.0), (111.5, 1.0)], 1.0, 112.0)
    assert path.count("M") == 2
    assert path.endswith(f"L{WIDTH} 1")  # above the top is drawn at the top
    assert _path([], 1.0, 112.0) == ""
