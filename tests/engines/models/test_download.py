"""Downloads against a local server that speaks the Hub's API, with everything that can go wrong on a home line."""

import os
import threading
import time
from pathlib import Path

import pytest

from engines.engine import ModelError
from engines.models.download.hub import explain_os_error
from engines.models.library import ModelLibrary
from engines.models.model_names import DEMO_FOLDER
from engines.processes.jobs import CancelledError
from engines.protocol import Target
from tests.engines.models.conftest import PLAIN, REPOSITORY, Watcher
from tests.engines.models.hub_server import Fault

TARGET = Target("transformers", "CPU", "fp32", REPOSITORY)
WEIGHTS = DEMO_FOLDER / "model.safetensors"


def get(library: ModelLibrary, watcher: Watcher | None = None, target: Target = TARGET):
    watcher = watcher or Watcher()
    return library.prepare(target, PLAIN, watcher, watcher.cancelled)


def test_only_the_needed_files_come_into_the_standard_cache(hub, cache, fresh, tmp_path):
    extra = tmp_path / "repository"
    extra.mkdir()
    for path in DEMO_FOLDER.iterdir():
        (extra / path.name).write_bytes(path.read_bytes())
    (extra / "pytorch_model.bin").write_bytes(b"0" * 200_000)
    (extra / "README.md").write_text("hello")
    (extra / "original").mkdir()
    (extra / "original" / "consolidated.safetensors").write_bytes(b"0" * 1000)
    (extra / "chat_template.json").write_text("{}")
    (extra / "additional_chat_templates").mkdir()
    (extra / "additional_chat_templates" / "rag.jinja").write_text("no")
    hub.add("arena/full", extra)

    watcher = Watcher()
    prepared = get(fresh, watcher, Target("transformers", "CPU", "fp32", "arena/full"))

    folder = Path(prepared.path)
    assert folder == (cache / "models--arena--full" / "snapshots" / hub.commit("arena/full")).resolve()
    templates = {"chat_template.json", "additional_chat_templates"}
    assert {path.name for path in folder.iterdir()} == {p.name for p in DEMO_FOLDER.iterdir()} | templates
    assert (folder / "additional_chat_templates" / "rag.jinja").read_text() == "no"
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS.read_bytes()
    assert prepared.revision == hub.commit("arena/full")
    assert watcher.stages == {"download"}
    assert "MB/s" in watcher.seen[-1].text or "kB/s" in watcher.seen[-1].text


def test_what_is_here_is_not_asked_for_again(hub, fresh):
    assert not fresh.is_ready(TARGET, PLAIN)
    get(fresh)
    asked = len(hub.requests)
    assert fresh.is_ready(TARGET, PLAIN)
    get(fresh)
    assert len(hub.requests) == asked


def test_the_hub_client_itself_finds_the_files(hub, fresh):
    get(fresh)
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(REPOSITORY, "model.safetensors", cache_dir=_cache())
    assert isinstance(found, str)
    assert Path(found).read_bytes() == WEIGHTS.read_bytes()


def _cache() -> Path:
    from engines.models.download.hub_cache import cache_dir

    return cache_dir()


def test_a_cut_connection_is_carried_on_not_restarted(hub, fresh):
    hub.faults["model.safetensors"] = Fault(cut_after=3_000_000, times=1)
    watcher = Watcher()
    prepared = get(fresh, watcher)
    assert (Path(prepared.path) / "model.safetensors").read_bytes() == WEIGHTS.read_bytes()
    ranges = [request.range for request in hub.gets("model.safetensors")]
    assert ranges[0] is None
    assert int(ranges[1].removeprefix("bytes=").removesuffix("-")) > 1_000_000
    assert any("broke" in progress.text for progress in watcher.seen)


def test_a_cancelled_download_is_carried_on_the_next_time(hub, fresh):
    hub.faults["model.safetensors"] = Fault(bytes_per_s=4_000_000)
    watcher = Watcher(lambda progress: (progress.fraction or 0) > 0.3)
    began = time.monotonic()
    with pytest.raises(CancelledError):
        get(fresh, watcher)
    assert time.monotonic() - began < 15
    assert not fresh.is_ready(TARGET, PLAIN)
    entry = next(e for e in fresh.installed() if e.kind == "downloaded")
    assert "interrupted" in entry.problem
    assert entry.bytes > 100_000
    hub.faults.clear()
    hub.requests.clear()
    get(fresh)
    first = hub.gets("model.safetensors")[0]
    assert int(first.range.removeprefix("bytes=").removesuffix("-")) > 100_000


def test_a_wrong_checksum_is_fetched_once_more(hub, fresh):
    hub.faults["model.safetensors"] = Fault(corrupt=True, times=1)
    prepared = get(fresh)
    assert (Path(prepared.path) / "model.safetensors").read_bytes() == WEIGHTS.read_bytes()


def test_a_lastingly_wrong_checksum_is_said_and_not_kept(hub, cache, fresh):
    hub.faults["model.safetensors"] = Fault(corrupt=True)
    with pytest.raises(ModelError, match="arrived damaged twice: its checksum"):
        get(fresh)
    assert not fresh.is_ready(TARGET, PLAIN)
    assert not list(cache.rglob("*.partial"))


@pytest.mark.parametrize(
    ("status", "headers", "sentence", "remedy"),
    [
        (401, {}, "wants a login", "HF_TOKEN"),
        (403, {"X-Error-Code": "GatedRepo"}, "is gated", "Accept its licence"),
        (404, {"X-Error-Code": "RepoNotFound"}, "There is no arena/demo", "spelling"),
        (429, {"Retry-After": "0"}, "slow down", "HF_TOKEN"),
        (500, {"Retry-After": "0"}, "HTTP 500", "HF_ENDPOINT"),
    ],
)
def test_refusals_are_one_clear_sentence(hub, fresh, status, headers, sentence, remedy):
    hub.faults["api"] = Fault(status=status, headers=headers)
    with pytest.raises(ModelError, match=sentence) as caught:
        get(fresh)
    assert remedy in caught.value.remedy


@pytest.mark.parametrize("status", [429, 503])
def test_passing_refusals_are_waited_out(hub, fresh, status):
    hub.faults["api"] = Fault(status=status, headers={"Retry-After": "0"}, times=2)
    hub.faults["model.safetensors"] = Fault(status=status, headers={"Retry-After": "0"}, times=2)
    assert (Path(get(fresh).path) / "model.safetensors").is_file()


def test_a_refused_file_is_named(hub, fresh):
    hub.faults["model.safetensors"] = Fault(status=403)
    with pytest.raises(ModelError, match="arena/demo is gated"):
        get(fresh)


def test_the_token_is_sent(hub, fresh, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_testtoken")
    get(fresh)
    assert hub.gets("model.safetensors")[0].authorization == "Bearer hf_testtoken"


def test_two_askers_share_one_download(hub, fresh):
    hub.faults["model.safetensors"] = Fault(bytes_per_s=8_000_000)
    results, watchers = [], [Watcher(), Watcher()]
    threads = [
        threading.Thread(target=lambda w=watcher: results.append(get(fresh, w).path)) for watcher in watchers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(results)) == 1
    assert len(results) == 2
    assert len(hub.gets("model.safetensors")) == 1
    assert all(watcher.stages == {"download"} for watcher in watchers)


def test_one_asker_leaving_does_not_stop_the_other(hub, fresh):
    hub.faults["model.safetensors"] = Fault(bytes_per_s=4_000_000)
    leaving = Watcher(lambda progress: (progress.fraction or 0) > 0.1)
    results = []
    stays = threading.Thread(target=lambda: results.append(get(fresh).path))
    stays.start()
    with pytest.raises(CancelledError):
        get(fresh, leaving)
    stays.join()
    assert len(results) == 1
    assert len(hub.gets("model.safetensors")) == 1


def test_no_network_is_said(cache, fresh, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelError, match="cannot be reached") as caught:
        get(fresh)
    assert "HF_ENDPOINT" in caught.value.remedy


def test_offline_uses_what_is_here_and_asks_nobody(hub, fresh, tmp_path):
    get(fresh)
    asked = len(hub.requests)
    offline = ModelLibrary(tmp_path / "data", offline=True)
    assert get(offline).path
    with pytest.raises(ModelError, match="offline"):
        get(offline, target=Target("transformers", "CPU", "fp32", "arena/other"))
    assert len(hub.requests) == asked


def test_a_full_disk_is_said_before_the_download(hub, fresh, tmp_path):
    huge = tmp_path / "huge"
    huge.mkdir()
    for path in DEMO_FOLDER.iterdir():
        (huge / path.name).write_bytes(path.read_bytes())
    hub.add("arena/huge", huge)
    real = hub.files

    from tests.engines.models import hub_server

    original = hub_server._sibling

    def enormous(root, path):
        sibling = original(root, path)
        if path.name == "model.safetensors":
            sibling["size"] = sibling["lfs"]["size"] = 10**16
        return sibling

    hub_server._sibling = enormous
    try:
        target = Target("transformers", "CPU", "fp32", "arena/huge")
        with pytest.raises(ModelError, match="not enough disk space"):
            get(fresh, target=target)
        plan = fresh.plan(target, PLAIN)
        assert plan.refusal
        assert plan.can_override
    finally:
        hub_server._sibling = original
    assert real("arena/huge")


@pytest.mark.parametrize(
    ("number", "name", "said"),
    [
        (206, "C:\\cache\\" + "long\\" * 60, "longer than 260 characters"),  # a folder in the snapshot
        (3, "C:\\cache\\" + "long\\" * 50 + "model.onnx", "longer than 260 characters"),  # a file in it
        (3, "X:\\cache", "could not be downloaded"),  # there is no such drive
        (5, "C:\\cache\\" + "long\\" * 60, "could not be downloaded"),
    ],
)
def test_a_path_too_long_for_windows_is_said(number, name, said):
    error = FileNotFoundError(2, "The system cannot find the path specified", "C:\\cache\\blob", None, name)
    if os.name != "nt":
        error.winerror = number
    else:
        error = OSError(0, "The system cannot find the path specified", "C:\\cache\\blob", number, name)
    explained = explain_os_error(error, "org/name")
    assert said in str(explained)
    assert ("HF_HOME" in explained.remedy) == ("260" in said)


def test_a_model_without_usable_weights_is_said(hub, fresh, tmp_path):
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "model.gguf").write_bytes(b"0" * 1000)
    hub.add("arena/gguf", tmp_path / "gguf")
    with pytest.raises(ModelError, match="none of the files"):
        get(fresh, target=Target("transformers", "CPU", "fp32", "arena/gguf"))
