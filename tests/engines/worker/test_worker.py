"""A worker keeps its pipe clean, its clock right and its promises, whatever the engine does."""

import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from engines.protocol import Failed, Finished, Message, Prompted, Token
from engines.runtime.manager import EngineFailure
from engines.runtime.worker_process import PROJECT_ROOT, WorkerProcess
from engines.worker.prompt import PromptEncoder, TextStream
from engines.worker.stops import StopFinder
from tests.helpers.worlds import DEMO_WEIGHTS, ECHO, SLOW_ECHO, ask, bad, manager_on


@pytest.fixture(scope="module")
def manager(tmp_path_factory):
    manager = manager_on(tmp_path_factory.mktemp("data"))
    yield manager
    manager.shutdown()


def generate(manager, target, request, on_event=lambda event: None):
    with manager.lease(target) as lease:
        return lease.generate("run", request, on_event)


def test_every_token_is_one_stamped_event(manager):
    events = []
    finished = generate(manager, ECHO, ask("Hello 🎉 世界"), events.append)
    tokens = [event for event in events if isinstance(event, Token)]
    assert finished.finish_reason == "stop"
    assert finished.metrics.output_tokens == len(tokens) == len(finished.metrics.token_offsets_s)
    assert [t.offset_s for t in tokens] == sorted(finished.metrics.token_offsets_s)
    assert finished.metrics.ttft_s <= finished.metrics.total_s
    assert "".join(t.text for t in tokens) == finished.text
    assert "Hello 🎉 世界" in finished.text


def test_the_prompt_is_counted_and_hashed_before_the_first_token(manager):
    events = []
    finished = generate(manager, ECHO, ask(), events.append)
    assert isinstance(events[0], Prompted)
    assert events[0].prompt_tokens == finished.metrics.prompt_tokens
    assert events[0].prompt_sha256 == finished.metrics.prompt_sha256
    assert len(events[0].prompt_sha256) == 64


def test_control_tokens_typed_by_a_person_come_back_as_text(manager):
    typed = "a <|end|> b <|user|> c <|endoftext|>"
    assert typed in generate(manager, ECHO, ask(typed)).text


def test_the_limit_ends_the_reply(manager):
    finished = generate(manager, ECHO, ask(max_new_tokens=5))
    assert (finished.finish_reason, finished.metrics.output_tokens) == ("length", 5)


def test_ignore_eos_runs_to_the_limit(manager):
    finished = generate(manager, ECHO, ask("Hi", max_new_tokens=200, ignore_eos=True))
    assert (finished.finish_reason, finished.metrics.output_tokens) == ("length", 200)


def test_the_pace_is_measured(manager):
    rate = generate(manager, SLOW_ECHO, ask("one two three four five six seven eight")).metrics.decode_tok_s
    assert rate == pytest.approx(20, rel=0.3)


def test_cancel_takes_effect_within_a_token(manager):
    with manager.lease(SLOW_ECHO) as lease:
        first = threading.Event()
        runs = []
        thread = threading.Thread(
            target=lambda: runs.append(
                lease.generate("c", ask(ignore_eos=True, max_new_tokens=900), lambda e: first.set())
            )
        )
        thread.start()
        assert first.wait(10)
        pressed = time.monotonic()
        lease.cancel("c")
        thread.join(10)
        assert time.monotonic() - pressed < 1
        assert runs[0].finish_reason == "cancelled"


def test_a_cancel_before_the_start_counts(manager):
    with manager.lease(ECHO) as lease:
        lease.cancel("early")
        assert lease.generate("early", ask(), lambda e: None).finish_reason == "cancelled"
        assert lease.generate("later", ask(), lambda e: None).finish_reason == "stop"


def test_too_long_a_prompt_is_refused_with_the_numbers(manager):
    failed = generate(manager, ECHO, ask("word " * 9000))
    assert isinstance(failed, Failed)
    assert failed.kind == "prompt"
    assert "4,096" in failed.message
    assert isinstance(generate(manager, ECHO, ask()), Finished)


def test_a_megabyte_of_prompt_is_refused_quickly(manager):
    started = time.monotonic()
    assert generate(manager, ECHO, ask("AI PC " * 180_000)).kind == "prompt"
    assert time.monotonic() - started < 20


def test_noise_on_stdout_never_reaches_the_protocol(manager):
    finished = generate(manager, bad("noise"), ask())
    assert isinstance(finished, Finished)
    assert finished.metrics.output_tokens == 5
    log = manager.state(bad("noise")).log_path.read_bytes()
    assert b"native noise" in log
    assert b"raw noise" in log


@pytest.mark.parametrize(("habit", "sign"), [("crash-in-reply", 3), ("abort-in-reply", None)])
def test_a_crash_is_told_with_its_exit_code(manager, habit, sign):
    failed = generate(manager, bad(habit), ask())
    assert failed.kind == "crashed"
    assert failed.exit_code not in (0, None)
    assert sign is None or failed.exit_code == sign


def test_a_crash_while_loading_shows_the_log(manager):
    with pytest.raises(EngineFailure) as caught, manager.lease(bad("crash-on-load")):
        pass
    assert caught.value.failed.exit_code == 7
    assert "about to fall over" in caught.value.failed.details


def test_what_the_library_raises_reaches_the_person(manager):
    failed = generate(manager, bad("raise"), ask())
    assert (failed.kind, failed.message, failed.remedy) == (
        "error",
        "The library said no.",
        "Try another device.",
    )
    assert "Traceback" in failed.details


@pytest.mark.parametrize(("habit", "words"), [("no-text", "no text"), ("circles", "in circles")])
def test_an_unusable_reply_is_flagged(manager, habit, words):
    assert words in generate(manager, bad(habit), ask()).warning


def test_the_worker_ends_with_its_parent(tmp_path):
    """Also when the parent is killed and can say no goodbye."""
    script = (
        "import sys, time; from pathlib import Path; from engines.runtime.worker_process import WorkerProcess\n"
        f"w = WorkerProcess(sys.executable, Path({str(tmp_path / 'w.log')!r})); w.start(lambda e: None)\n"
        "print(w.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=PROJECT_ROOT, stdout=subprocess.PIPE)
    worker = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    worker.wait(10)
    assert not worker.is_running()


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_while_a_worker_starts_is_the_parents_business_too(tmp_path):
    """A terminal sends it to the whole process group; a Python that is still starting would die of it."""
    worker = WorkerProcess(sys.executable, tmp_path / "w.log")
    starting = threading.Thread(target=worker.start, args=(lambda event: None,))
    starting.start()
    while worker.pid is None:
        time.sleep(0.01)
    assert os.getpgid(worker.pid) not in (os.getpgid(0), os.getpgid(os.getppid()))
    starting.join()
    worker.stop()


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_is_the_parents_business(tmp_path):
    worker = WorkerProcess(sys.executable, tmp_path / "w.log")
    assert worker.start(lambda event: None) is None
    os.kill(worker.pid, signal.SIGINT)
    time.sleep(0.3)
    assert worker.alive
    worker.stop()
    assert not worker.alive


def test_an_interpreter_that_is_not_there_is_told(tmp_path):
    failed = WorkerProcess(tmp_path / "no-python", tmp_path / "w.log").start(lambda event: None)
    assert "no-python" in failed.message


def test_a_named_text_ends_the_reply_and_is_no_part_of_it(manager):
    events = []
    prompt = "one two three four five six"
    finished = generate(manager, ECHO, ask(prompt, stop=("four f", "never")), events.append)
    assert finished.finish_reason == "stop"
    assert finished.text.endswith("one two three ")
    assert "".join(event.text for event in events if isinstance(event, Token)) == finished.text


def test_what_only_begins_like_a_stop_text_is_given_out(manager):
    finished = generate(manager, ECHO, ask("say four", stop=("fourteen", "our!")))
    assert "say four" in finished.text


STOPS = [
    (("ab",), ("a", "b", "c"), "", True),
    (("ab",), ("a", "c", "ab", "x"), "ac", True),
    (("aab",), ("aaa", "b"), "a", True),
    (("abc", "b"), ("xa", "bc"), "x", True),
    (("abcd",), ("abc",), "abc", False),
    ((), ("abc", "d"), "abcd", False),
    (("",), ("abc",), "abc", False),
    (("日本",), ("x日", "本語"), "x", True),
]


@pytest.mark.parametrize(("stops", "pieces", "text", "found"), STOPS)
def test_stop_texts_are_found_across_pieces(stops, pieces, text, found):
    finder = StopFinder(stops)
    given = "".join(finder.push(piece) for piece in pieces) + finder.finish()
    assert (given, finder.found) == (text, found)


def test_a_raw_prompt_goes_in_as_it_is(manager, encoder):
    raw = "<|user|>Hi<|end|><|assistant|>"
    finished = generate(manager, ECHO, ask(raw_prompt=raw))
    assert finished.metrics.prompt_tokens == len(encoder.tokenizer.encode(raw).ids)
    assert generate(manager, ECHO, ask(raw_prompt="")).kind == "prompt"


TEXTS = [
    "Hello 🎉",
    "👩‍👩‍👧‍👦 family",
    "你好,世界!",
    "naïve café",
    "a\n\n  b\tc",
    "العربية हिन्दी",
    "🇩🇪🏳️‍🌈",
    "",
]


@pytest.fixture(scope="module")
def encoder():
    return PromptEncoder(DEMO_WEIGHTS)


@pytest.mark.parametrize("text", TEXTS)
def test_streamed_text_never_splits_a_character(encoder, text):
    stream = TextStream(encoder.tokenizer)
    pieces = [stream.push(i) for i in encoder.tokenizer.encode(text, add_special_tokens=False).ids]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) + stream.finish() == text


def test_a_cut_character_is_shown_as_such_at_the_end(encoder):
    stream = TextStream(encoder.tokenizer)
    ids = encoder.tokenizer.encode("ok 🎉", add_special_tokens=False).ids[:-1]
    assert "".join(stream.push(i) for i in ids) + stream.finish() == "ok \ufffd"


CHATS = [
    [("user", "Hello")],
    [("system", "Be brief."), ("user", "Hello 🎉")],
    [("user", "What is an NPU?"), ("assistant", "A chip."), ("user", "  And a GPU?\n\n")],
]


@pytest.mark.parametrize("chat", CHATS, ids=len)
def test_prompts_equal_those_of_transformers(encoder, chat):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(DEMO_WEIGHTS)
    theirs = tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in chat],
        add_generation_prompt=True,
        return_dict=False,
    )
    assert encoder.encode([Message(*message) for message in chat]) == theirs


def test_typed_control_tokens_change_no_other_token(encoder):
    ids = encoder.encode([Message("user", "x <|end|> y")])
    control = [i for i in ids if i in encoder.stop_ids]
    assert len(control) == 1  # the template's own
    assert encoder.tokenizer.decode(ids, skip_special_tokens=False).count("<|end|>") == 2


def test_a_reply_can_be_carried_on(encoder):
    messages = [Message("user", "Count."), Message("assistant", "One, two,")]
    assert encoder.render(messages, continue_reply=True).endswith("One, two,")
