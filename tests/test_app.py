"""The command line as a person uses it: real processes, exit codes, one clear sentence for what cannot be."""

import contextlib
import errno
import json
import os
import socket
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from app import SettingsError, main, nobody_reads, writable
from engines.runtime.worker_process import PROJECT_ROOT

TARGETS = (
    "openvino-genai/CPU/int8",
    "optimum-intel/CPU/int8",
    "onnxruntime-genai/CPU/int4",
    "transformers/CPU/fp32",
)
RUN_FIELDS = {
    *("target", "model", "text", "finish_reason", "error", "prompt_tokens", "output_tokens", "prompt_sha256"),
    *("load_s", "warmup_s", "ttft_s", "decode_tok_s", "total_s", "token_offsets_s", "peak_rss_bytes"),
}


def app(*arguments, data_dir, timeout=280, **options):
    return subprocess.run(
        [sys.executable, "app.py", *arguments, "--data-dir", str(data_dir)],
        cwd=PROJECT_ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        **options,
    )


def test_the_ui_process_loads_no_inference_library():
    code = (
        "import sys, app, ui.page\n"
        "heavy = {'torch', 'transformers', 'openvino', 'openvino_genai', 'onnxruntime', 'onnxruntime_genai',"
        " 'optimum', 'nncf', 'onnx'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert output.stdout.strip() == "[]", output.stderr


def test_the_command_line_starts_without_the_page():
    code = "import sys, app; print('gradio' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert output.stdout.strip() == "False", output.stderr


def test_four_backends_answer_the_same_prompt(data_dir):
    on = [word for target in TARGETS for word in ("--on", target)]
    result = app("run", "What is an NPU?", *on, "--json", "--max-new-tokens", "60", data_dir=data_dir)
    assert result.returncode == 0, result.stderr
    runs = json.loads(result.stdout)["runs"]
    assert [run["target"] for run in runs] == list(TARGETS)
    assert len({run["prompt_sha256"] for run in runs}) == 1
    for run in runs:
        assert set(run) >= RUN_FIELDS
        assert run["error"] is None
        assert run["finish_reason"] == "stop"
        assert run["text"].strip()
        assert len(run["token_offsets_s"]) == run["output_tokens"] > 3
        assert run["ttft_s"] == run["token_offsets_s"][0] <= run["total_s"]
        span = run["token_offsets_s"][-1] - run["token_offsets_s"][0]
        assert run["decode_tok_s"] == pytest.approx((run["output_tokens"] - 1) / span)
        assert run["load_s"] > 0
        assert run["warmup_s"] > 0
        assert run["peak_rss_bytes"] > 50_000_000
        assert {run["contended"], run["disturbed"]} <= {True, False}
        assert run["disturbed"] == bool(run["other_load"]["reasons"])
        assert run["contended"] == bool(run["other_load"]["ours"])
        placement = run["placement"]
        assert (placement["requested"], placement["observed"]) == ("CPU", "CPU")
        assert placement["badge"] == "proven", placement
        assert placement["claimed"].upper() == "CPU"
    with contextlib.closing(sqlite3.connect(data_dir / "arena.sqlite3")) as db:
        newest = (
            "SELECT panel FROM runs WHERE turn_id = (SELECT id FROM turns ORDER BY n DESC LIMIT 1) ORDER BY 1"
        )
        assert [panel for (panel,) in db.execute(newest)] == [1, 2, 3, 4]


def test_one_failure_leaves_the_others_and_the_exit_status_tells(data_dir):
    result = app(
        *("run", "Hi", "--on", "onnxruntime-genai/CPU/int4", "--on", "onnxruntime-genai/DML/int4", "--json"),
        data_dir=data_dir,
    )
    assert result.returncode == 1
    good, failed = json.loads(result.stdout)["runs"]
    assert good["error"] is None
    assert failed["error"]["kind"] == "unavailable"
    assert "Windows" in failed["error"]["message"] + failed["error"]["remedy"]
    assert failed["token_offsets_s"] == []
    assert failed["ttft_s"] is None


def test_replies_are_printed_for_people_too(data_dir):
    result = app("run", "Hello", "--on", "onnxruntime-genai/CPU/int4", data_dir=data_dir)
    assert result.returncode == 0
    assert "TTFT" in result.stdout
    assert "tok/s" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "Hi", "--on", "openvino-genai"), "ENGINE/DEVICE/PRECISION"),
        (("run", "  ", "--on", "transformers/CPU/fp32"), "empty"),
        (("run", "Hi", "--on", "transformers/CPU/fp32", "--temperature", "3"), "between 0 and 2; it is 3"),
        (("run", "Hi", "--on", "transformers/CPU/fp32", "--top-p", "7"), "between 0.01 and 1; it is 7"),
        (("run", "Hi", "--on", "transformers/CPU/fp32", "--repetition-penalty", "nan"), "between 0.5 and 2"),
        (("run", "Hi", "--on", "transformers/CPU/fp32", "--seed", "-1"), "Seed must be between 0"),
        (("run", "Hi", "--on", "transformers/CPU/fp32", "--top-k", "2.5"), "must be a whole number"),
    ],
)
def test_wrong_usage_is_one_sentence(tmp_path, arguments, words):
    result = app(*arguments, data_dir=tmp_path)
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "  ", "--on", "transformers/CPU/fp32", "--json"),
        ("history", "show", "nothing", "--json"),
        ("keys", "revoke", "nobody", "--json"),
    ],
)
def test_who_asked_for_json_gets_json_whatever_happened(tmp_path, arguments, capsys, monkeypatch):
    monkeypatch.setattr(os, "umask", lambda mask: mask)  # this process is the other tests' as well
    assert main([*arguments, "--data-dir", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["error"] in err


@pytest.mark.parametrize(
    ("target", "model", "words"),
    [
        ("nothing/CPU/int4", "demo", "no engine"),
        ("transformers/CPU/int3", "demo", "no precision"),
        ("transformers/CPU/fp32", "./not-there", "not-there"),
        ("openvino-genai/NPU/int4", "demo", "NPU"),
    ],
)
def test_what_cannot_run_says_why(data_dir, target, model, words):
    result = app("run", "Hi", "--on", target, "--model", model, "--json", data_dir=data_dir)
    assert result.returncode == 1
    error = json.loads(result.stdout)["runs"][0]["error"]
    assert words in error["message"]
    assert "Traceback" not in result.stderr


def test_the_doctor_names_every_engine_and_what_to_do(data_dir):
    result = app("doctor", "--json", data_dir=data_dir)
    assert result.returncode == 0, result.stderr
    engines = {engine["name"]: engine for engine in json.loads(result.stdout)["engines"]}
    assert set(engines) >= {
        "openvino-genai",
        "optimum-intel",
        "onnxruntime-genai",
        "transformers",
        "intel-npu",
    }
    for name in ("openvino-genai", "optimum-intel", "onnxruntime-genai", "transformers"):
        assert engines[name]["ok"]
        assert "CPU" in engines[name]["devices"]
        assert engines[name]["versions"]
    for engine in engines.values():
        if not engine["ok"]:
            assert engine["reason"]
            assert engine["remedy"]
        for status in engine["device_status"]:
            assert status["ok"] or (status["reason"] and status["remedy"])


def test_a_reader_that_has_seen_enough_gets_no_traceback(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "app.py", "history", "search", "--json", "--data-dir", str(tmp_path)]
    finished = subprocess.run(command, cwd=PROJECT_ROOT, stdout=writer, stderr=subprocess.PIPE, timeout=120)
    os.close(writer)
    assert finished.stderr == b""


@pytest.mark.skipif(
    os.name == "nt", reason="A Windows shell cannot close a stream; pythonw is not run by tests."
)
def test_who_closed_its_streams_gets_what_was_asked_for_all_the_same(tmp_path):
    """As a service or pythonw starts it; and what was meant for errors does not come out elsewhere."""
    export = f'{sys.executable} app.py history export "$1/all.csv" --data-dir "$1"'
    search = f'{sys.executable} app.py history search --data-dir "$1"'
    done = subprocess.run(["sh", "-c", f"{export} >&- 2>&-", "sh", tmp_path], cwd=PROJECT_ROOT, timeout=60)
    assert (done.returncode, (tmp_path / "all.csv").exists()) == (0, True)
    done = subprocess.run(
        ["sh", "-c", f"{search} 2>&-", "sh", tmp_path], cwd=PROJECT_ROOT, timeout=60, stdout=subprocess.PIPE
    )
    assert (done.returncode, done.stdout) == (0, b"")


def test_a_port_in_use_is_one_sentence(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = app("--no-browser", "--port", port, data_dir=tmp_path, timeout=60)
    assert result.returncode == 2
    assert f"Port {port}" in result.stderr
    assert "--port" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unwritable_data_directory_is_one_sentence(tmp_path):
    file = tmp_path / "file"
    file.write_text("not a folder")
    result = app("--no-browser", "--port", "0", data_dir=file / "inside", timeout=60)
    assert result.returncode == 2
    assert "--data-dir" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_data_directory_that_the_system_makes_elsewhere_has_one_name(tmp_path, monkeypatch):
    """As for a Python of the Microsoft Store in AppData: what did not exist before is made in a folder of its own."""
    asked, real, make = tmp_path / "AppData" / "BackendArena", tmp_path / "Packages", Path.mkdir

    def redirected(self, *arguments, **options):
        if self == asked and not self.exists():
            make(real)
            make(self.parent, exist_ok=True)
            self.symlink_to(real, target_is_directory=True)
            return
        make(self, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", redirected)
    try:
        first = writable(asked)
    except SettingsError:
        pytest.skip("links need a right that this account has not (Windows without developer mode)")
    assert first == writable(asked) == real.resolve()


@pytest.mark.parametrize(
    ("system", "error", "seen_enough"),
    [
        ("posix", BrokenPipeError(errno.EPIPE, "Broken pipe"), True),
        ("posix", OSError(errno.EINVAL, "Invalid argument"), False),
        ("nt", OSError(errno.EINVAL, "Invalid argument"), True),
        ("nt", OSError(errno.EINVAL, "Invalid argument", "con?.txt"), False),
        ("nt", OSError(errno.ENOSPC, "No space left on device"), False),
    ],
)
def test_whether_whoever_read_the_output_has_seen_enough(system, error, seen_enough, monkeypatch):
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(os, "name", system)
        found = nobody_reads(error)
    assert found == seen_enough


def test_the_page_is_served_and_ends_without_leftovers(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "app.py", "--no-browser", "--port", str(port), "--data-dir", str(tmp_path)]
    server = subprocess.Popen(
        command, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert f"http://localhost:{port}" in server.stdout.readline()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20) as answer:
            assert answer.status == 200
            assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
        children = psutil.Process(server.pid).children(recursive=True)
    finally:
        server.terminate()
        output = server.communicate(timeout=60)[0]
    if os.name != "nt":
        assert server.returncode == 0, output
    _gone, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    assert "Traceback" not in output, output
