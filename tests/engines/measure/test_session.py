"""Sessions on real workers without a library: the contract holds, and what breaks it never wins."""

import itertools
import threading
import time
from dataclasses import replace

import pytest

from engines.environments.environments import Environments
from engines.measure import document, suites, verdict
from engines.measure.records import Case, Suite
from engines.measure.session import Session
from engines.runtime import lease
from engines.runtime.manager import EngineManager
from engines.telemetry import placement
from tests.helpers.measuring import LONG, SHORT, TINY, Told, Weights, session
from tests.helpers.measuring import lane as a_lane
from tests.helpers.worlds import SPECS

GOOD, SLOW = a_lane("echo", "100"), a_lane("echo", "20")
ONE_ROUND = replace(TINY, cases=(SHORT,), repeats=1, instruction_tokens=4)


@pytest.fixture(scope="module")
def manager(tmp_path_factory):
    """Weights of which 10 GB/s read 250 a second: an echo at its pace is possible, one without is not."""
    folder = tmp_path_factory.mktemp("measure")
    manager = EngineManager(folder, Weights(40_000_000), Environments(folder), specs=SPECS)
    yield manager
    manager.shutdown()


@pytest.fixture(scope="module")
def measured(manager):
    """Two good lanes and every kind of bad one, measured once for all that only looks."""
    bad = [a_lane("bad", habit) for habit in BAD]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease, "CANCEL_TIMEOUT_S", 0.5)
        return session(manager, GOOD, *bad, a_lane("bad", "falls-back", "GPU"), patience_s=6.0).run()


BAD = (
    "garbage",
    "early-stop",
    "crash-in-reply",
    "too-fast",
    "hang-in-reply",
    "no-text",
    "raise",
    "no-memory",
)


@pytest.mark.parametrize(
    ("habit", "reason"),
    [
        ("garbage", "garbage"),
        ("early-stop", "ended after 5 of 16 tokens"),
        ("crash-in-reply", "ended unexpectedly"),
        ("too-fast", "impossible"),
        ("hang-in-reply", "No token came for 6 s"),
        ("no-text", "ended after 0 of 16 tokens"),
        ("raise", "The library said no"),
        ("no-memory", "needs 2.0 GB"),
        ("falls-back", "not on GPU"),
    ],
)
def test_what_breaks_the_contract_never_wins(measured, habit, reason):
    key = next(r.lane.key for r in measured.lanes if habit in r.lane.key)
    for found in verdict.verdicts(measured):
        assert found.winner != key
        assert key not in found.ranking
    assert reason in verdict.verdict_for(verdict.JOBS[0], measured).excluded[key]


def test_a_lane_that_fails_ends_alone(measured):
    good = measured.lane(GOOD.key)
    assert good.status == "measured"
    assert sum(repeat.counts for repeat in good.repeats) == TINY.repeats * len(TINY.cases)
    assert verdict.verdict_for(verdict.JOBS[0], measured).winner == GOOD.key
    assert verdict.verdict_for(verdict.JOBS[0], measured).confidence == "only"


def test_prompts_are_equal_between_lanes_exact_in_length_and_never_the_same_twice(manager):
    found = session(manager, GOOD, a_lane("echo", "fast"), suite=replace(TINY, passes=("speed",))).run()
    hashes = [{(r.case, r.number): r.prompt_sha256 for r in result.repeats} for result in found.lanes]
    assert hashes[0] == hashes[1]
    assert len(set(hashes[0].values())) == TINY.repeats * len(TINY.cases)
    tokens = {r.case: r.prompt_tokens for result in found.lanes for r in result.repeats}
    assert tokens == {"short": 64, "long": 256}
    assert all(len(r.token_offsets_s) == 16 for result in found.lanes for r in result.repeats)


def test_a_limit_that_was_measured_too_low_refuses_nobody_who_is_possible(manager):
    """Something read memory beside the first look: the second, before a rate is refused, is believed."""
    looks = iter((1e9, 10e9))
    suite = replace(TINY, cases=(SHORT,), passes=("speed",), repeats=2)
    (result,) = session(manager, GOOD, suite=suite, measure_bandwidth=lambda size: next(looks)).run().lanes
    assert [repeat.refused for repeat in result.repeats] == [None, None]
    assert result.bandwidth_bytes_s == 10e9
    looks = iter((1e9, 1e9))  # a third look would end the test
    (result,) = session(manager, GOOD, suite=suite, measure_bandwidth=lambda size: next(looks)).run().lanes
    assert all("impossible" in repeat.refused for repeat in result.repeats)


def test_a_lane_whose_packages_changed_in_between_is_not_gone_on_with(manager):
    """Stopped, updated, gone on with: its median would be made of the old and the new."""
    speed = replace(TINY, cases=(SHORT,), passes=("speed",), repeats=1)
    begun = session(manager, GOOD, suite=speed).run()
    (result,) = begun.lanes
    older = replace(result, versions={**result.versions, "openvino": "2026.1"})
    suite = replace(begun.suite, repeats=2)
    found = Session(
        replace(begun, suite=suite, lanes=(older,)),
        manager,
        surroundings=Told(),
        keep_loaded=True,
        cooldown_s=0,
    ).run()
    assert "openvino 2026.1 → None" in found.lanes[0].failure.message
    assert len(found.lanes[0].repeats) == 1
    again = Session(
        replace(begun, suite=suite), manager, surroundings=Told(), keep_loaded=True, cooldown_s=0
    ).run()
    assert len(again.lanes[0].repeats) == 2


def test_the_order_of_lanes_turns_from_round_to_round(manager):
    seen = []

    class Notes:
        def saved(self, measurement):
            pass

        def repeated(self, measurement, lane, case, repeat, ran):
            seen.append((repeat.number, lane.key))

    suite = replace(TINY, cases=(SHORT,), passes=("speed",))
    session(manager, GOOD, a_lane("echo", "fast"), suite=suite, journal=Notes()).run()
    orders = [[key for _, key in group] for _, group in itertools.groupby(seen, lambda pair: pair[0])]
    assert orders == [[GOOD.key, "echo/CPU/fast"], ["echo/CPU/fast", GOOD.key], [GOOD.key, "echo/CPU/fast"]]


def test_a_disturbed_repeat_is_marked_told_and_done_again(manager):
    suite = replace(ONE_ROUND, passes=("speed",))
    found = session(manager, GOOD, suite=suite, surroundings=Told(0.9)).run()
    first, second = found.lane(GOOD.key).repeats
    assert (first.disturbed, first.other_load_cores, first.attempt) == (True, 0.9, 1)
    assert "0.90 cores" in first.disturbance
    assert (second.disturbed, second.attempt) == (False, 2)
    assert first.prompt_sha256 != second.prompt_sha256
    assert [r.counts for r in (first, second)] == [False, True]


def test_a_lane_that_leaves_its_device_in_the_middle_never_wins(manager, monkeypatch):
    """A driver that gives up under way: the library goes on naming the device, and the processor does the work."""
    seen, runs = placement.judge, itertools.count()

    def judge(*arguments):
        there = seen(*arguments)
        why = "The GPU stood still while the processor worked."
        return there if next(runs) < 3 else replace(there, badge="contradicted", evidence=("Asked.", why))

    monkeypatch.setattr(placement, "judge", judge)
    found = session(manager, GOOD, suite=replace(ONE_ROUND, passes=("speed",))).run()
    result = found.lane(GOOD.key)
    assert result.asked_device
    assert (result.repeats[-1].counts, result.repeats[-1].status) == (False, "finished")
    assert verdict.excluded(result, found) == (
        "refused: did not run where it claims: The GPU stood still while the processor worked"
    )


def test_waiting_for_a_quiet_machine_ends_for_a_whole_measurement(manager, monkeypatch):
    """On a machine that never is quiet the repeats are taken and marked; nobody waits for ever."""

    class Busy(Told):
        def now(self, seconds):
            return self._conditions(0.9)

    monkeypatch.setattr("engines.measure.quiet.WAIT_IN_ALL_S", 0.0)
    told = []
    measured = session(manager, GOOD, suite=ONE_ROUND, surroundings=Busy(*[0.9] * 10))
    monkeypatch.setattr(measured.standing, "say", told.append)
    repeats = measured.run().lane(GOOD.key).repeats
    assert [r.disturbed for r in repeats] == [True] * 3
    assert not [text for text in told if text.startswith("Waiting for a quiet machine")]


def test_what_is_disturbed_again_and_again_stays_marked_and_decides_nothing(manager):
    found = session(manager, GOOD, suite=ONE_ROUND, surroundings=Told(*[0.9] * 10)).run()
    repeats = found.lane(GOOD.key).repeats
    assert [r.disturbed for r in repeats] == [True] * 3
    assert "disturbed" in verdict.verdict_for(verdict.JOBS[0], found).excluded[GOOD.key]


def test_a_pause_lets_others_have_the_machine_and_a_stop_keeps_what_is_done(manager):
    suite = replace(TINY, cases=(SHORT,), passes=("speed",), repeats=50)
    reached, saved = threading.Event(), []

    class Notes:
        def saved(self, measurement):
            saved.append(measurement)

        def repeated(self, measurement, lane, case, repeat, ran):
            if repeat.number == 2:
                work.pause()
            reached.set()

    work = session(manager, GOOD, suite=suite, journal=Notes())
    thread = threading.Thread(target=work.run)
    thread.start()
    assert reached.wait(30)
    while work.watch().state != "paused":
        assert thread.is_alive()
        time.sleep(0.01)
    with manager.activity.doing("load", "somebody else's"):
        assert work.watch().measurement.status == "paused"
    work.go_on()
    while len(work.measurement.lane(GOOD.key).repeats) < 4:
        assert thread.is_alive()
        time.sleep(0.01)
    work.stop()
    thread.join(30)
    done = work.measurement
    assert (done.status, work.watch().state) == ("stopped", "stopped")
    assert 4 <= len(done.lane(GOOD.key).repeats) < 50
    assert saved[-1] == done


def test_a_saved_measurement_goes_on_where_it_ended(manager):
    """As after the app was closed: all that is left is what was saved, as text."""
    texts = []

    class Notes:
        def saved(self, measurement):
            texts.append(document.dumps(measurement))

        def repeated(self, measurement, lane, case, repeat, ran):
            if len(measurement.lane(GOOD.key).repeats) == 3:
                first.stop()

    first = session(manager, GOOD, journal=Notes())
    before = first.run()
    assert before.status == "stopped"
    resumed = document.loads(texts[-1])
    assert resumed == before
    after = Session(
        resumed,
        manager,
        surroundings=Told(),
        measure_bandwidth=lambda size: 10e9,
        keep_loaded=True,
        cooldown_s=0,
    ).run()
    assert after.status == "finished"
    assert after.lane(GOOD.key).repeats[:3] == before.lane(GOOD.key).repeats
    assert len(after.lane(GOOD.key).repeats) == TINY.repeats * len(TINY.cases)
    assert after.lane(GOOD.key).ledger == before.lane(GOOD.key).ledger


def test_a_case_too_long_for_a_lane_is_left_out_and_said(manager):
    suite = Suite(
        "own", "Own", (SHORT, Case("huge", "Huge", "summarisation", 4090, 16)), 1, passes=("speed",)
    )
    found = session(manager, GOOD, suite=suite).run()
    assert [case.name for case in found.suite.cases] == ["short"]
    assert "Huge" in found.suite.note


def test_a_slow_machine_gets_shorter_cases_the_same_for_all(manager):
    suite = replace(ONE_ROUND, passes=("speed",), target_s=0.5, cases=(replace(LONG, new_tokens=64),))
    found = session(manager, GOOD, a_lane("echo", "fast"), suite=suite).run()
    (case,) = found.suite.cases
    assert suites.LEAST_NEW_TOKENS <= case.new_tokens < 64
    assert "Shortened" in found.suite.note
    assert {len(r.token_offsets_s) for result in found.lanes for r in result.repeats} == {case.new_tokens}


def test_time_left_is_known_once_every_lane_was_tried_and_ends_at_nothing(manager):
    work = session(manager, GOOD, suite=replace(ONE_ROUND, passes=("speed",)))
    assert work.left_s() is None
    work.run()
    assert work.left_s() == 0
    assert work.watch().left == ()


def test_memory_foreground_and_race_are_passes_of_their_own(manager):
    suite = replace(ONE_ROUND, passes=("speed", "memory", "foreground", "race"))
    found = session(manager, GOOD, SLOW, suite=suite).run()
    for result in found.lanes:
        assert result.peak_rss_bytes > 1_000_000
        assert len(result.foreground.taxes) == 8
        assert all(0 <= tax <= 1 for tax in result.foreground.taxes)
    assert {(row.lane, row.beside) for row in found.together} == {(GOOD.key, SLOW.key), (SLOW.key, GOOD.key)}
    assert all(row.kept_share == pytest.approx(1, abs=0.35) for row in found.together)
