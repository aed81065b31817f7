"""A lane whose model and tokenizer live elsewhere: no folder, no token ids, and no number that nobody knows."""

import threading
import time

import pytest

from engines import ENGINES
from engines.environments.environments import Environments
from engines.models.library import ModelLibrary
from engines.protocol import DEMO_MODEL, Finished, Prompted, ProtocolError, RunMetrics, Target, Token
from engines.runtime.manager import EngineManager
from tests.helpers import served_engine
from tests.helpers.worlds import ask
from ui.chat.run_view import RunFold, whose_times
from ui.compare.offer import Offer
from ui.compare.panel_html import numbers_line
from ui.models.background import format_choices

NAMES = ["here", "there"]


@pytest.fixture(scope="module")
def manager(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    manager = EngineManager(
        folder,
        ModelLibrary(folder),
        Environments(folder),
        specs=(served_engine.SPEC,),
        settings={"names": lambda: {"names": tuple(NAMES)}},
    )
    yield manager
    manager.shutdown()


def served(habit: str) -> Target:
    return Target("served", "here", habit, "large")


def generate(manager, habit, on_event=lambda event: None):
    with manager.lease(served(habit)) as lease:
        return lease.generate(f"run-{habit}", ask("Hello"), on_event)


def test_pieces_are_stamped_as_they_arrive_and_carry_no_token_id(manager):
    events = []
    finished = generate(manager, "counted", events.append)
    assert events[0] == Prompted("run-counted", None, None)
    pieces = [event for event in events if isinstance(event, Token)]
    assert [piece.token_id for piece in pieces] == [None] * 5  # the empty one is no piece
    assert finished.text == "Hello One two three four."
    metrics = finished.metrics
    assert metrics.piece_offsets_s == tuple(piece.offset_s for piece in pieces)
    assert (metrics.token_offsets_s, metrics.prompt_sha256, metrics.clock) == ((), None, "client")
    assert (metrics.prompt_tokens, metrics.cached_prompt_tokens, metrics.output_tokens) == (7, 3, 9)
    assert finished.finish_reason == "length"
    assert metrics.server == {"decode_s": 1.5}


def test_the_rate_is_the_servers_count_over_the_streams_span_and_says_so(manager):
    metrics = generate(manager, "counted").metrics
    span = metrics.piece_offsets_s[-1] - metrics.piece_offsets_s[0]
    assert metrics.decode_tok_s == pytest.approx(8 / span)
    assert metrics.rate_from_counts
    assert metrics.ttft_s == metrics.piece_offsets_s[0]
    assert metrics.itl_s == ()


def test_without_a_count_there_is_no_rate(manager):
    metrics = generate(manager, "silent").metrics
    assert (metrics.output_tokens, metrics.decode_tok_s, metrics.prefill_tok_s) == (None, None, None)
    assert metrics.ttft_s > 0


def test_the_servers_own_token_times_come_before_the_clients(manager):
    metrics = generate(manager, "timed").metrics
    assert metrics.clock == "server"
    assert (metrics.ttft_s, metrics.decode_tok_s) == (0.5, pytest.approx(4.0))
    assert not metrics.rate_from_counts
    assert len(metrics.piece_offsets_s) == 5


def test_a_server_that_says_nothing_can_be_cancelled(manager):
    prompted, outcomes = threading.Event(), []
    with manager.lease(served("stuck")) as lease:
        thread = threading.Thread(
            target=lambda: outcomes.append(lease.generate("s", ask(), lambda event: prompted.set()))
        )
        thread.start()
        assert prompted.wait(10)
        pressed = time.monotonic()
        lease.cancel("s")
        thread.join(10)
        assert time.monotonic() - pressed < 1
    assert outcomes[0].finish_reason == "cancelled"


def test_workers_are_told_the_owners_settings_and_hear_of_new_ones(manager):
    with manager.lease(served("counted")) as lease:
        assert lease.loaded.details == {"folder": None, "names": ("here", "there")}
        assert lease.loaded.warmup_s is None
    assert manager.availability()["served"].devices == ("here", "there")
    NAMES.append("elsewhere")
    try:
        manager.settings_changed("names")
        assert manager.known_availability["served"].devices == ("here", "there", "elsewhere")
        assert manager.state(served("counted")).loaded is None
    finally:
        NAMES.remove("elsewhere")


def test_a_view_counts_no_pieces_as_tokens():
    fold = RunFold(1, served("counted"))
    fold.start()
    for number in range(3):
        fold.take(Token("r", None, f"{number} ", 0.1 * number))
    view = fold.view()
    assert (view.tokens, view.decode_tok_s, view.ttft_s, view.text) == (None, None, 0.0, "0 1 2 ")
    metrics = RunMetrics(7, None, 40, piece_offsets_s=(0.1, 0.2, 0.3), clock="client", total_s=0.4)
    fold.take(Finished("r", "stop", "0 1 2 ", metrics))
    done = fold.view()
    assert (done.tokens, done.prompt_tokens, done.decode_tok_s) == (40, 7, pytest.approx(195))
    assert done.version > view.version
    assert whose_times(done.metrics) in numbers_line(done).replace("&#x27;", "'")
    assert "token count over the stream's span" in whose_times(done.metrics)
    assert whose_times(RunMetrics(token_offsets_s=(0.1, 0.2))) is None


def test_nothing_is_planned_downloaded_or_offered_for_a_model_elsewhere(tmp_path):
    library, target = ModelLibrary(tmp_path), Target("served", "here", "counted", "not/on-any-disk")
    plan = library.plan(target, served_engine.SPEC)
    assert (plan.ready, plan.refusal, plan.download_bytes) == (True, None, 0)
    assert library.is_ready(target, served_engine.SPEC)
    assert library.brief(target, served_engine.SPEC) is None
    prepared = library.prepare(target, served_engine.SPEC, print, threading.Event())
    assert (prepared.path, prepared.format) == (None, None)
    with pytest.raises(ProtocolError, match="elsewhere"):
        _ = prepared.folder
    assert format_choices((*ENGINES, served_engine.SPEC)) == format_choices(ENGINES)


def test_a_panel_takes_a_model_that_the_server_has(manager):
    offer = Offer((served_engine.SPEC,), manager.availability())
    assert offer.settle("served", "here", "counted", DEMO_MODEL).model == "large"
    assert offer.settle("served", "here", "counted", "small").model == "small"
    assert offer.models_of("served", "here") == ("large", "small")


@pytest.mark.parametrize(
    ("spelling", "model"),
    [
        ("a/b/c@org/model", "org/model"),
        ("a/b/c@llama3.2:1b", "llama3.2:1b"),
        ("a/b/c@x/y/z@demo", "x/y/z@demo"),
        ("a/b/c", "given"),
    ],
)
def test_a_target_can_name_its_model(spelling, model):
    assert Target.parse(spelling, "given") == Target("a", "b", "c", model)


@pytest.mark.parametrize("spelling", ["a/b/c@", "a/b@c/d", "a/b/c/d@x", "@model"])
def test_what_names_no_target_is_refused(spelling):
    with pytest.raises(ProtocolError, match="@MODEL"):
        Target.parse(spelling)
