"""Somebody else's server as a lane: a real worker asks a real HTTP server, which behaves well or badly."""

import json
import os
import stat
import threading
import time

import pytest
import trustme

from engines import endpoint_engine
from engines.endpoints import discovery
from engines.endpoints.discovery import Known, find_servers
from engines.endpoints.keys import Keys
from engines.endpoints.registry import SETTINGS, Endpoints, parse_option
from engines.engine import EngineError, ServerError
from engines.environments.environments import Environments
from engines.models.library import ModelLibrary
from engines.protocol import Failed, Target, Token
from engines.runtime.manager import EngineFailure, EngineManager
from engines.toolkit import openai_client
from engines.toolkit.openai_client import Address, Client
from tests.helpers.server_double import MODELS, WORDS, ServerDouble, doubles
from tests.helpers.worlds import ask

TEXT = "".join(WORDS)
SECRET = "sk-very-secret-4711"


class MemoryRing:
    """A keyring that keeps its promises."""

    def __init__(self):
        self.entries = {}

    def get_password(self, service, username):
        return self.entries.get((service, username))

    def set_password(self, service, username, password):
        self.entries[service, username] = password

    def delete_password(self, service, username):
        del self.entries[service, username]


class LockedRing:
    """A keyring that refuses, as Secret Service does without a session."""

    def _refuse(self, *_):
        raise RuntimeError("Prompt dismissed")

    get_password = set_password = delete_password = _refuse


@pytest.fixture(scope="module")
def double():
    yield from doubles()


class World:
    """A manager that knows the servers given to it, and nothing else."""

    def __init__(self, folder):
        self.endpoints = Endpoints(folder, ring=lambda: None)
        self.manager = EngineManager(
            folder,
            ModelLibrary(folder),
            Environments(folder),
            settings={SETTINGS: lambda: {**self.endpoints.for_workers(), "stall_s": 0.6}},
        )

    def ask(self, model, name="double", on_event=lambda event: None, **options):
        with self.manager.lease(Target("endpoint", name, "served", model)) as lease:
            return lease.generate("run", ask("Hello", **options), on_event)

    def load_failure(self, model, name="double"):
        with (
            pytest.raises(EngineFailure) as caught,
            self.manager.lease(Target("endpoint", name, "served", model)),
        ):
            pass
        return caught.value.failed


@pytest.fixture(scope="module")
def world(tmp_path_factory, double):
    world = World(tmp_path_factory.mktemp("endpoint"))
    world.endpoints.add("double", double.url)
    yield world
    world.manager.shutdown()


def test_its_words_arrive_with_its_counts(world, double):
    finished = world.ask("good", max_new_tokens=33, temperature=0.5, top_p=0.9, seed=7)
    assert (finished.text, finished.finish_reason) == (TEXT, "stop")
    metrics = finished.metrics
    assert (metrics.prompt_tokens, metrics.cached_prompt_tokens, metrics.output_tokens) == (11, 4, 9)
    assert (metrics.clock, metrics.prompt_sha256, metrics.token_offsets_s) == ("client", None, ())
    span = metrics.piece_offsets_s[-1] - metrics.piece_offsets_s[0]
    assert metrics.decode_tok_s == pytest.approx(8 / span)
    assert metrics.rate_from_counts
    sent = double.requests[-1]["body"]
    assert sent["messages"] == [{"role": "user", "content": "Hello"}]
    assert (sent["max_tokens"], sent["temperature"], sent["top_p"], sent["seed"]) == (33, 0.5, 0.9, 7)
    assert sent["stream_options"] == {"include_usage": True}


def test_a_stop_text_ends_it_here_and_is_passed_on(world, double):
    finished = world.ask("good", stop=("away",), presence_penalty=0.5)
    assert (finished.text, finished.finish_reason) == ("Hello from far ", "stop")
    assert double.requests[-1]["body"]["stop"] == ["away"]
    assert double.requests[-1]["body"]["presence_penalty"] == 0.5


def test_without_usage_there_is_no_count_and_no_rate(world):
    finished = world.ask("silent")
    assert (finished.text, finished.finish_reason) == (TEXT, "length")
    metrics = finished.metrics
    assert (metrics.output_tokens, metrics.decode_tok_s, metrics.prompt_tokens) == (None, None, None)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("llama", {"prompt_ms": 35.5, "predicted_per_second": 61.5, "cache_n": 4}),
        ("ollama", {"total_duration_s": 2.5, "load_duration_s": 1.25}),
        ("arena", {"ttft_ms": 500.0}),
    ],
)
def test_the_servers_own_numbers_are_kept_in_its_own_words(world, model, told):
    server = world.ask(model).metrics.server
    assert {name: server[name] for name in told} == told


def test_another_arena_brings_its_own_token_times(world):
    metrics = world.ask("arena").metrics
    assert metrics.clock == "server"
    assert (metrics.ttft_s, metrics.decode_tok_s) == (0.5, pytest.approx(8.0))
    assert len(metrics.piece_offsets_s) == len(WORDS)


@pytest.mark.parametrize("model", ["thinks", "thinks-aloud", "thinks-in-brackets", "in-parts"])
def test_a_thought_is_told_apart_from_the_answer(world, model):
    events = []
    finished = world.ask(model, on_event=events.append)
    assert (finished.reasoning, finished.text) == ("Let me see.", TEXT)
    assert finished.metrics.first_reasoning_s < finished.metrics.first_answer_s
    pieces = [event for event in events if isinstance(event, Token)]
    assert "".join(piece.thought for piece in pieces) == finished.reasoning
    assert pieces[0].thought
    assert not pieces[-1].thought


def test_a_thought_that_is_only_ended_is_told_apart_in_the_end(world):
    finished = world.ask("ends-a-thought")
    assert (finished.reasoning, finished.text) == ("Let me see.", TEXT)


def test_thinking_can_be_switched_and_who_cannot_says_so(world, double):
    assert world.ask("good", thinking=False).warning is None
    assert double.requests[-1]["body"]["reasoning_effort"] == "none"
    assert "reasoning_effort" in world.ask("old", thinking=True).warning


@pytest.mark.parametrize("model", ["whole", "old", "strict"])
def test_servers_that_know_less_are_met_where_they_are(world, model):
    finished = world.ask(model, seed=3)
    assert (finished.text, finished.metrics.output_tokens) == (TEXT, 9)
    assert ("seed" in (finished.warning or "")) == (model == "old")
    assert world.ask(model).warning is None


def test_what_a_server_refuses_is_understood_in_every_shape(world):
    assert "temperature" in world.ask("tgi").warning
    assert world.ask("tgi").text == TEXT
    finished = world.ask("fastapi")
    assert (finished.text, finished.warning) == (TEXT, None)


def test_a_reply_that_was_counted_is_whole_and_zeros_are_no_count(world):
    finished = world.ask("no-reason")
    assert (finished.text, finished.finish_reason, finished.metrics.output_tokens) == (TEXT, "stop", 9)
    metrics = world.ask("zeros").metrics
    assert (metrics.prompt_tokens, metrics.output_tokens, metrics.decode_tok_s) == (None, None, None)


def test_a_reply_that_the_server_cut_says_so(world):
    assert "content filter" in world.ask("filtered").warning


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("gateway", ("502", "Bad Gateway")),
        ("plain-words", ("429", "Slow down, please")),
        ("no-key", ("wants a key", "401")),
        ("no-model", ("404", "does not exist")),
        ("too-many", ("429", "Rate limit", "20 s")),
        ("broken", ("500", "out of memory")),
        ("stops", ("stopped before its end", "3 pieces")),
        ("cut", ("stopped before its end", "lost")),
        ("hangs", ("stopped before its end", "nothing came for 0.6 s")),
        ("error-inside", ("gave up", "crashed")),
        ("error-unnamed", ("gave up", "The engine is dead")),
        ("error-whole", ("gave up", "Unexpected endpoint")),
        ("garbage", ("no JSON", "own log")),
        ("html", ("web page (HTML)", "/v1")),
        ("away", ("302", "elsewhere.example")),
    ],
)
def test_each_failure_is_one_sentence_with_a_remedy(world, model, words):
    failed = world.ask(model)
    assert isinstance(failed, Failed)
    assert failed.kind == "server"
    assert failed.remedy
    for word in words:
        assert word in f"{failed.message} {failed.remedy}"
    assert failed.message.startswith(("double (http", "The stream of double (http"))
    assert failed.message.count("\n") == 0
    assert world.ask("good").text == TEXT  # and the next prompt goes through


def test_a_server_that_says_its_role_and_then_loads_is_waited_for(world):
    """What comes at once is no text; another Backend Arena says it before its model is loaded."""
    finished = world.ask("role-first")  # a second of silence, where 0.6 s are allowed between two pieces
    assert finished.text == TEXT
    assert finished.metrics.ttft_s > 0.9


def test_text_that_was_held_back_to_the_end_gives_no_rate(world):
    finished = world.ask("at-once")
    assert (finished.text, finished.metrics.output_tokens) == (TEXT, 9)
    assert finished.metrics.decode_tok_s is None
    assert "does not stream" in finished.warning
    assert finished.metrics.ttft_s > 0.5


def test_tokens_of_a_thought_that_was_not_sent_enter_no_rate(world):
    finished = world.ask("hides-its-thoughts")
    metrics = finished.metrics
    span = metrics.piece_offsets_s[-1] - metrics.piece_offsets_s[0]
    assert (metrics.output_tokens, metrics.decode_tok_s) == (9, pytest.approx(8 / span))
    assert "thought 100 tokens" in finished.warning


@pytest.mark.parametrize("model", ["slow", "hangs"])
def test_cancelling_takes_less_than_a_second_and_the_server_learns_of_it(world, double, model):
    double.gone.clear()
    target, outcomes = Target("endpoint", "double", "served", model), []
    with world.manager.lease(target) as lease:
        begun = threading.Event()
        known = len(double.requests)
        thread = threading.Thread(
            target=lambda: outcomes.append(lease.generate("c", ask(), lambda event: begun.set()))
        )
        thread.start()
        assert begun.wait(20)
        while len(double.requests) == known:
            time.sleep(0.01)
        pressed = time.monotonic()
        lease.cancel("c")
        thread.join(10)
        assert time.monotonic() - pressed < 1
    assert outcomes[0].finish_reason == "cancelled"
    assert double.gone.wait(5)


def test_the_probe_names_each_server_with_its_models(world, double):
    closed = ServerDouble()
    closed.__exit__()
    world.endpoints.add("closed", closed.url)
    try:
        world.manager.settings_changed(SETTINGS)
        here, gone = world.manager.availability(refresh=True)["endpoint"].device_status
    finally:
        world.endpoints.remove("closed")
    assert (here.ok, here.models, here.title) == (True, MODELS, double.url)
    assert not gone.ok
    assert "cannot be reached: nothing listens there." in gone.reason
    assert "Start the server" in gone.remedy


def test_a_model_that_the_server_lacks_is_named_with_those_it_has(world):
    failed = world.load_failure("phi-99")
    assert failed.kind == "model"
    assert "phi-99" in failed.message
    assert "good, silent" in failed.message
    assert "endpoint/double/served@good" in failed.remedy


def test_an_unknown_name_says_which_are_known(world):
    failed = world.load_failure("good", name="nobody")
    assert "double" in failed.message
    assert "--endpoint" in failed.remedy


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"html": True}, "web page (HTML)"),
        ({"key": SECRET}, "wants a key"),
        ({"root": "/elsewhere/v1"}, "404"),
    ],
)
def test_what_is_no_such_server_is_told_at_once(world, options, words):
    with ServerDouble(**options) as other:
        world.endpoints.add("other", other.address)
        failed = world.load_failure("good", name="other")
    assert words in failed.message
    assert failed.remedy


@pytest.mark.parametrize("root", ["/v1", "/v3", "/api/v1"])
def test_a_bare_address_is_enough(world, root):
    with ServerDouble(root=root) as other:
        world.endpoints.add("bare", other.address)
        assert world.ask("good", name="bare").text == TEXT
        world.manager.unload(Target("endpoint", "bare", "served", "good"))


def test_a_server_without_a_model_is_there_and_says_so(world):
    with ServerDouble(empty=True) as other:
        world.endpoints.add("empty", other.url)
        try:
            world.manager.settings_changed(SETTINGS)
            found = world.manager.availability(refresh=True)["endpoint"].device_status
            (status,) = [status for status in found if status.device == "empty"]
            assert status.ok
            known = [Known("Ollama", "ollama", other.server_address[1])]
            assert [server.models for server in find_servers(known, lambda: None)] == [()]
        finally:
            world.endpoints.remove("empty")


def test_a_server_that_first_looks_for_its_models_is_waited_for(monkeypatch):
    """Being there is told within seconds by the connection; what it has may take longer."""
    monkeypatch.setattr(openai_client, "CONNECT_S", 0.4)
    monkeypatch.setattr(endpoint_engine, "CONNECT_S", 0.4, raising=False)
    engine = endpoint_engine.ENGINE()
    with ServerDouble(slow_list=True) as other:
        engine.take_settings({"endpoints": [{"name": "slow", "url": other.url}]})
        (status,) = engine.probe().device_status
    assert (status.ok, status.models) == (True, MODELS)


def test_a_server_whose_list_of_models_fails_can_be_asked_all_the_same(world):
    with ServerDouble(listless=True) as other:
        world.endpoints.add("listless", other.url)
        assert world.ask("good", name="listless").text == TEXT
        world.manager.unload(Target("endpoint", "listless", "served", "good"))


def test_a_certificate_that_nobody_trusts_is_not_trusted(world):
    import ssl

    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(tls)
    with ServerDouble(tls=tls) as other:
        world.endpoints.add("tls", other.url)
        failed = world.load_failure("good", name="tls")
        assert not other.requests
    assert "certificate" in failed.message
    assert "not trusted" in failed.message
    assert "SSL_CERT_FILE" in failed.remedy


# --- keys --------------------------------------------------------------------------------------------------


def test_a_kept_key_opens_the_door_and_is_seen_nowhere(tmp_path):
    world = World(tmp_path)
    try:
        with ServerDouble(key=SECRET) as locked:
            world.endpoints.add("locked", locked.url, SECRET)
            finished = world.ask("good", name="locked")
            assert finished.text == TEXT
            with world.manager.lease(Target("endpoint", "locked", "served", "good")) as lease:
                assert SECRET not in repr(lease.loaded) + repr(lease.model)
            assert world.ask("no-key", name="locked").message.count(SECRET) == 0
            refused = world.ask("no-key", name="locked")
            assert "refuses the key" in refused.message
            assert SECRET not in refused.details
    finally:
        world.manager.shutdown()
    texts = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert [name for name, text in texts.items() if SECRET.encode() in text] == ["endpoint-keys.json"]
    if os.name == "posix":
        assert stat.S_IMODE((tmp_path / "endpoint-keys.json").stat().st_mode) == 0o600
        assert stat.S_IMODE((tmp_path / "endpoints.json").stat().st_mode) == 0o600


def test_the_keyring_is_preferred_and_the_file_is_the_refuge(tmp_path):
    ring = MemoryRing()
    keys = Keys(tmp_path / "keys.json", ring)
    assert keys.keep("a", "http://a/v1", "one") == "keyring"
    assert keys.get("a", "http://a/v1") == "one"
    assert not (tmp_path / "keys.json").exists()
    keys.forget("a", "http://a/v1")
    assert ring.entries == {}
    locked = Keys(tmp_path / "keys.json", LockedRing())
    assert locked.keep("a", "http://a/v1", "two") == "file"
    assert locked.get("a", "http://a/v1") == "two"
    locked.forget("a", "http://a/v1")
    assert locked.get("a", "http://a/v1") is None


def test_a_name_with_a_new_address_sends_its_old_key_nowhere(tmp_path):
    endpoints = Endpoints(tmp_path, ring=lambda: None)
    endpoints.add("a", "http://one.example/v1", SECRET)
    endpoints.add("a", "http://two.example/v1")
    assert [entry["key"] for entry in endpoints.for_workers()["endpoints"]] == [None]


def test_a_key_can_stay_in_the_environment(tmp_path, monkeypatch):
    endpoints = Endpoints(tmp_path, ring=lambda: None)
    endpoints.add("a", "http://one.example/v1", "$MY_KEY")
    endpoints.add("my-server", "http://two.example/v1")
    assert not endpoints.has_key(endpoints.all()[0])
    monkeypatch.setenv("MY_KEY", "first")
    monkeypatch.setenv("MY_SERVER_API_KEY", "second")
    assert [entry["key"] for entry in endpoints.for_workers()["endpoints"]] == ["first", "second"]
    assert "first" not in (tmp_path / "endpoints.json").read_text()


@pytest.mark.parametrize("key", ["“sk-abc”", "sk-a\u200bb", "sk-a\nb", "schlüssel"])
def test_a_key_that_cannot_be_sent_is_told_before_anybody_is_asked(tmp_path, monkeypatch, key):
    endpoints = Endpoints(tmp_path, ring=lambda: None)
    with pytest.raises(EngineError, match="no key can have") as refused:
        endpoints.add("a", "http://one.example/v1", key)
    assert refused.value.remedy
    assert not endpoints.all()
    with pytest.raises(ServerError, match="no key can have") as refused:
        Client(Address("a", "http://one.example/v1", key))  # as out of an environment variable
    assert key not in str(refused.value)


# --- addresses ---------------------------------------------------------------------------------------------


def test_added_servers_are_found_again_and_those_of_the_command_line_are_not(tmp_path):
    endpoints = Endpoints(tmp_path, ring=lambda: None)
    endpoints.add("kept", "http://localhost:1/v1/")
    endpoints.add(*parse_option("passing=http://localhost:2/v1"), lasting=False)
    assert [entry.name for entry in endpoints.all()] == ["kept", "passing"]
    again = Endpoints(tmp_path, ring=lambda: None)
    assert [(entry.name, entry.url) for entry in again.all()] == [("kept", "http://localhost:1/v1")]
    again.remove("kept")
    assert again.all() == ()
    assert json.loads((tmp_path / "endpoints.json").read_text()) == []


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("", "http://localhost/v1"),
        ("a/b", "http://localhost/v1"),
        ("a@b", "http://localhost/v1"),
        ("a b", "http://localhost/v1"),
        ("a", "localhost:8080"),
        ("a", "ftp://localhost/v1"),
        ("a", "file:///etc/passwd"),
        ("a", "http://"),
        ("a", "http://user:pw@localhost/v1"),
        ("a", "http://localhost/v1?key=1"),
        ("a", "http://localhost:99999/v1"),
    ],
)
def test_what_is_no_name_or_address_is_refused_with_an_example(tmp_path, name, url):
    with pytest.raises(EngineError) as refused:
        Endpoints(tmp_path, ring=lambda: None).add(name, url)
    assert refused.value.remedy
    assert not (tmp_path / "endpoints.json").exists()


@pytest.mark.parametrize(
    ("copied", "url"),
    [
        ("http://localhost:8000/v1/chat/completions", "http://localhost:8000/v1"),
        ("http://localhost:8000/v1/models/", "http://localhost:8000/v1"),
        ("http://0.0.0.0:8000", "http://127.0.0.1:8000"),
        ("http://[::]:8000/v1", "http://[::1]:8000/v1"),
        ("http://10.0.0.0:8000/models/v1", "http://10.0.0.0:8000/models/v1"),
    ],
)
def test_an_address_as_it_is_copied_is_understood(tmp_path, copied, url):
    assert Endpoints(tmp_path, ring=lambda: None).add("a", copied).url == url


def test_local_servers_are_found_on_loopback_by_asking(double):
    with ServerDouble(root="/v3") as other, ServerDouble(html=True) as page, ServerDouble() as closed:
        closed.__exit__()
        known = [
            Known("One", "one", double.server_address[1]),
            Known("Two", "two", other.server_address[1], "/v3"),
            Known("Wrong path", "wrong", other.server_address[1]),
            Known("A web page", "page", page.server_address[1]),
            Known("Nobody", "nobody", closed.server_address[1]),
        ]
        found = find_servers(known, foundry_port=lambda: None)
        assert [(server.title, server.url) for server in found] == [("One", double.url), ("Two", other.url)]
        assert found[0].models == MODELS
        as_foundry = find_servers(known[:1], foundry_port=lambda: other.server_address[1])
    assert [server.title for server in as_foundry] == ["One"]  # it answers under /v3, not /v1


@pytest.mark.skipif(os.name == "nt", reason="writes a shell script")
def test_a_command_that_speaks_another_code_page_is_understood(tmp_path, monkeypatch):
    command = tmp_path / "foundry"
    command.write_bytes(
        b"#!/bin/sh\necho '\xf0\x9f\x9f\xa2 \x81 running on http://127.0.0.1:61234/openai/status'\n"
    )
    command.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert discovery._foundry_port() == 61234
