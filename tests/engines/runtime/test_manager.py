"""Lazy loads, leases, eviction, keep-alive, crashes: on real workers with the echo and the bad engine."""

import os
import signal
import threading
import time

import psutil
import pytest

from engines.environments.environments import Environments
from engines.protocol import Failed, Finished, Target, Token
from engines.runtime.manager import EngineFailure, EngineManager
from tests.helpers.worlds import ECHO, SLOW_ECHO, SPECS, DemoFolder, ask, bad, manager_on

MEMORY = 1_000_000_000


@pytest.fixture
def children():
    """The processes started since the test began: other tests' workers may be alive too."""
    before = set(psutil.Process().children())
    return lambda: [child for child in psutil.Process().children() if child not in before]


@pytest.fixture
def make_manager(tmp_path, children):
    made = []

    def make(**options):
        made.append(manager_on(tmp_path, **options))
        return made[-1]

    yield make
    for manager in made:
        manager.shutdown()


def sized(claimed_bytes: int, device="CPU") -> Target:
    return Target("echo", device, "fast", str(claimed_bytes))


def touch(manager, target):
    with manager.lease(target) as lease:
        return lease.generate("r", ask(), lambda e: None)


def test_nothing_is_loaded_until_it_is_used(make_manager):
    manager = make_manager()
    assert manager.state(ECHO).phase == "absent"
    stages = []
    with manager.lease(ECHO, lambda p: stages.append(p.stage)) as lease:
        assert manager.state(ECHO).phase == "ready"
        assert lease.loaded.load_s > 0
        assert lease.loaded.warmup_s is not None
    assert stages == ["start", "load", "load", "warm-up"]
    assert manager.state(ECHO).rss_bytes > 1_000_000


def test_a_loaded_target_is_used_again(make_manager):
    manager = make_manager()
    touch(manager, ECHO)
    stages = []
    with manager.lease(ECHO, stages.append):
        pass
    assert stages == []


def test_two_askers_share_one_load(make_manager):
    manager = make_manager()
    loaded = []

    def use():
        with manager.lease(ECHO) as lease:
            loaded.append(lease.loaded)
            time.sleep(0.2)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(entry) for entry in loaded}) == 1


def test_two_runs_on_one_target_take_turns(make_manager):
    manager = make_manager()
    outcomes, tokens = {}, []

    def use(name):
        with manager.lease(SLOW_ECHO) as lease:
            outcomes[name] = lease.generate(
                name,
                ask("a b c"),
                lambda event: isinstance(event, Token) and tokens.append((name, event.run_id)),
            )

    threads = [threading.Thread(target=use, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(isinstance(outcome, Finished) for outcome in outcomes.values())
    assert {name for name, _ in tokens} == {"one", "two"}
    assert all(name == run_id for name, run_id in tokens)  # each hears its own, as the worker named it
    changes = [now for now, before in zip(tokens[1:], tokens, strict=False) if now != before]
    assert len(changes) == 1  # the second began when the first had ended


def test_the_least_recently_used_idle_worker_makes_room(make_manager, children):
    need = 20_000_000
    limit = [MEMORY]
    manager = make_manager(available_memory=lambda: limit[0] - _resident_bytes(children()))
    first, second, third = (sized(need + i) for i in range(3))
    touch(manager, first)
    touch(manager, second)
    touch(manager, first)
    limit[0] = _resident_bytes(children()) + need  # nine tenths of it may be taken: not quite enough
    touch(manager, third)
    assert [manager.state(t).phase for t in (first, second, third)] == ["ready", "absent", "ready"]


def _resident_bytes(processes) -> int:
    return sum(process.memory_info().rss for process in processes)


def test_what_can_never_fit_is_refused_with_the_numbers(make_manager):
    manager = make_manager(available_memory=lambda: MEMORY)
    touch(manager, ECHO)
    with pytest.raises(EngineFailure) as caught, manager.lease(sized(5_000_000_000)):
        pass
    assert caught.value.failed.kind == "memory"
    assert "5.0 GB" in caught.value.failed.message
    assert "0.9 GB" in caught.value.failed.message
    assert manager.state(ECHO).phase == "ready"  # nobody was evicted in vain


def test_out_of_memory_while_loading_is_a_clear_failure(make_manager):
    manager = make_manager()
    touch(manager, ECHO)
    with pytest.raises(EngineFailure) as caught, manager.lease(bad("no-memory")):
        pass
    assert "the model needs 2.0 GB" in caught.value.failed.message
    assert manager.state(ECHO).phase == "absent"  # it was unloaded for the second try


def test_a_worker_in_use_is_not_unloaded(make_manager, children):
    manager = make_manager()
    with manager.lease(ECHO):
        assert not manager.unload(ECHO)
    assert manager.unload(ECHO)
    assert manager.state(ECHO).phase == "absent"
    assert not children()


def test_idle_workers_end_after_the_keep_alive(make_manager):
    manager = make_manager(keep_alive_s=0.4)
    touch(manager, ECHO)
    deadline = time.monotonic() + 5
    while manager.state(ECHO).phase == "ready" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert manager.state(ECHO).phase == "absent"
    assert isinstance(touch(manager, ECHO), Finished)


def test_two_crashes_in_a_row_block_until_retried(make_manager):
    manager = make_manager()
    target = bad("crash-in-reply")
    assert touch(manager, target).kind == "crashed"
    assert touch(manager, target).kind == "crashed"
    with pytest.raises(EngineFailure, match="2 times in a row"):
        touch(manager, target)
    manager.retry(target)
    assert touch(manager, target).kind == "crashed"


def test_a_good_run_between_two_crashes_forgives(make_manager):
    manager = make_manager()
    target = bad("die-when-told")
    long_prompt = ask("word " * 80)
    for _ in range(3):
        assert isinstance(touch(manager, target), Finished)
        with manager.lease(target) as lease:
            assert lease.generate("r", long_prompt, lambda e: None).kind == "crashed"


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_worker_killed_in_idleness_is_started_afresh(make_manager, children):
    manager = make_manager()
    touch(manager, ECHO)
    worker = children()[0]
    os.kill(worker.pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while manager.state(ECHO).phase == "ready" and time.monotonic() < deadline:
        time.sleep(0.02)
    state = manager.state(ECHO)
    assert state.phase == "failed"
    assert "SIGKILL" in state.failure.message
    assert isinstance(touch(manager, ECHO), Finished)


def test_a_worker_that_ignores_cancel_is_ended(make_manager, children, monkeypatch):
    monkeypatch.setattr("engines.runtime.lease.CANCEL_TIMEOUT_S", 1.0)
    manager = make_manager()
    with manager.lease(bad("ignore-cancel")) as lease:
        threading.Timer(0.3, lease.cancel, ["r"]).start()
        failed = lease.generate("r", ask(), lambda e: None)
    assert isinstance(failed, Failed)
    assert failed.kind == "hung"
    assert not children()


def test_a_load_that_hangs_can_be_stopped(make_manager, children):
    manager = make_manager()
    cancelled = threading.Event()
    threading.Timer(1.0, cancelled.set).start()
    with pytest.raises(EngineFailure) as caught, manager.lease(bad("hang-on-load"), cancelled=cancelled):
        pass
    assert caught.value.failed.kind == "cancelled"
    assert manager.state(bad("hang-on-load")).phase == "absent"
    assert not children()


def test_probing_tells_devices_and_remedies_and_leaves_no_process(make_manager, children):
    manager = make_manager()
    assert manager.known_availability is None
    echo = manager.availability()["echo"]
    assert echo.devices == ("CPU",)
    assert echo.device_status[1].remedy == "Use CPU."
    assert not children()


@pytest.mark.parametrize(
    ("target", "words"),
    [(Target("nothing", "CPU", "int4"), "no engine"), (Target("echo", "CPU", "int3"), "no precision")],
)
def test_what_does_not_exist_is_said_so(make_manager, target, words):
    with pytest.raises(EngineFailure, match=words) as caught:
        touch(make_manager(), target)
    assert caught.value.failed.kind == "unavailable"
    assert caught.value.failed.remedy


def test_nothing_is_converted_for_a_device_that_is_not_here(tmp_path):
    source = DemoFolder()
    manager = EngineManager(tmp_path, source, Environments(tmp_path), specs=SPECS)
    with pytest.raises(EngineFailure, match="An echo has no GPU"):
        touch(manager, Target("echo", "GPU", "fast", "far away"))
    assert source.prepared == 0
    assert isinstance(touch(manager, Target("echo", "CPU", "fast", "far away")), Finished)
    manager.shutdown()


def test_a_number_is_kept_with_the_versions_that_its_own_engine_names(make_manager):
    with make_manager().lease(ECHO) as lease:
        assert set(lease.loaded.versions) == {"python", "pip", "transformers", "tokenizers", "numpy"}
