"""The tuner on an engine whose settings really change its pace, and break it."""

import dataclasses
import threading

import pytest

from engines.engine import EngineError
from engines.environments.environments import Environments
from engines.measure import tuner
from engines.protocol import Target, Tunable
from engines.runtime.manager import EngineFailure, EngineManager
from tests.helpers import echo_engine
from tests.helpers.measuring import Weights
from tests.helpers.worlds import SPECS, ask

TARGET = Target("echo", "CPU", "100")


@pytest.fixture(scope="module")
def manager(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tune")
    manager = EngineManager(folder, Weights(), Environments(folder), specs=SPECS)
    yield manager
    manager.shutdown()


def test_candidates_are_the_defaults_each_setting_and_pairs_of_those_the_device_knows():
    found = tuner.candidates(echo_engine.SPEC, "CPU")
    assert found[0] == {}
    assert {"pace": "400"} in found
    assert {"pace": "400", "crash": True} in found
    assert not any("elsewhere" in settings for settings in found)
    assert any("elsewhere" in settings for settings in tuner.candidates(echo_engine.SPEC, "GPU.1"))


def test_it_keeps_what_is_clearly_faster_and_survives_what_breaks(manager):
    told = []
    found = tuner.tune(manager, TARGET, 60, told.append)
    assert found.best == {"pace": "400"}
    assert found.chosen.median < found.default.median / 2
    assert "kept" in found.why
    assert {trial.settings.get("crash"): trial.seconds for trial in found.trials}[True] is None
    assert any("pace=400" in text for text in told)
    assert manager.state(TARGET).phase == "absent"


def test_what_is_no_better_is_not_kept(manager):
    target = Target("echo", "CPU", "fast")
    found = tuner.tune(manager, target, 60)
    assert found.best == {}
    assert "defaults stay" in found.why


@pytest.mark.parametrize(
    ("precision", "kept", "stays", "says"),
    [
        ("100", {"pace": "2000"}, True, "Nothing beats pace=2000"),
        ("fast", {"pace": "40"}, False, "pace=40 was kept before, but is −"),
        ("fast", {"crash": True}, False, "crash=True was kept before, but failed"),
    ],
)
def test_what_was_kept_before_stays_unless_it_is_beaten(tmp_path, precision, kept, stays, says):
    only = tuple(Tunable(name, (value,)) for name, value in kept.items())
    spec = dataclasses.replace(echo_engine.SPEC, tunables=only)
    manager = EngineManager(tmp_path, Weights(), Environments(tmp_path), specs=(spec,))
    try:
        found = tuner.tune(manager, Target("echo", "CPU", precision), 60, kept=kept)
    finally:
        manager.shutdown()
    assert found.best == (kept if stays else {})
    assert says in found.why
    assert kept in [trial.settings for trial in found.trials]


def test_that_what_was_kept_goes_is_said_also_where_nothing_takes_its_place(manager):
    found = tuner.tune(manager, Target("echo", "CPU", "fast"), 60, kept={"pace": "40"})
    assert found.best == {}
    assert found.why.startswith("pace=40 was kept before, but is −")
    assert "pace=400" in found.why
    assert found.why.endswith("not clearly better.")


def test_a_stop_ends_it_and_what_was_kept_before_stays(manager):
    stop, told = threading.Event(), []

    def tell(text):
        told.append(text)
        if "pace=400, round" in text:
            stop.set()

    found = tuner.tune(manager, TARGET, 60, tell, kept={"pace": "20"}, stop=stop)
    assert (found.stopped, found.best, found.chosen) == (True, {"pace": "20"}, None)
    assert found.why.startswith("Stopped after 2 tries; pace=20 stays.")
    assert "pace=400" in told[-1]


def test_a_target_that_does_not_run_is_said(manager):
    with pytest.raises((EngineFailure, EngineError), match="no engine"):
        tuner.tune(manager, Target("none", "CPU", "x"), 10)


def test_what_was_kept_is_used_from_then_on_recorded_and_taken_back(tmp_path):
    kept = {TARGET: {"pace": "400"}}
    manager = EngineManager(
        tmp_path, Weights(), Environments(tmp_path), specs=SPECS, tuned=lambda target: kept.get(target, {})
    )
    try:
        with manager.lease(TARGET) as lease:
            assert lease.loaded.details["tuning"] == {"pace": "400"}
            fast = lease.generate("a", ask(max_new_tokens=20, ignore_eos=True), lambda event: None)
        kept.clear()
        with manager.lease(TARGET) as lease:
            assert "tuning" not in lease.loaded.details
            slow = lease.generate("b", ask(max_new_tokens=20, ignore_eos=True), lambda event: None)
        assert fast.metrics.decode_tok_s > 2 * slow.metrics.decode_tok_s
        other = manager.lease(TARGET, tuning={"pace": "20"})
        with manager.lease(TARGET), pytest.raises(EngineFailure, match="other settings"):
            other.__enter__()
    finally:
        manager.shutdown()


def test_a_weight_variant_is_a_target_of_its_own(manager):
    with manager.lease(Target("echo", "CPU", "100-coarse")) as lease:
        assert lease.model.precision == "100-coarse"
    assert echo_engine.SPEC.offers("100-coarse")
    assert not echo_engine.SPEC.offers("20-coarse")
