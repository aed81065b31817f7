"""Isolated environments, really built: small ones here, the Intel NPU library's in test_intel_npu.py."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from engines.engine import UnavailableError
from engines.environments.build import Build
from engines.environments.environments import LOOK_AGAIN_S, Environments
from engines.environments.interpreters import find_interpreter
from engines.environments.spec import ENVIRONMENTS, EnvironmentSpec, SetUpCancelledError, SetUpError
from engines.processes import guarded

ROOT = Path(__file__).resolve().parents[3]
HERE = sys.version_info[:2]
NOWHERE = "http://127.0.0.1:9/simple"
SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]


def small_spec(folder: Path) -> EnvironmentSpec:
    """An environment with one tiny package."""
    requirements = folder / "small.txt"
    requirements.write_text("# a comment\nsix==1.17.0\n")
    return EnvironmentSpec("small", "Small", requirements, (HERE,), ("six",), ("six",), 50_000_000)


@pytest.fixture
def spec(tmp_path) -> EnvironmentSpec:
    return small_spec(tmp_path)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Environments:
    """One that is ready; the tests that damage it repair it."""
    folder = tmp_path_factory.mktemp("made")
    environments = Environments(folder / "data", specs=(small_spec(folder),))
    create(environments)
    return environments


@pytest.fixture
def small(tmp_path, spec) -> Environments:
    return Environments(tmp_path / "data", specs=(spec,))


def create(environments, cancelled=None, on_progress=lambda progress: None):
    return environments.create("small", on_progress, cancelled)


def folders(data: Path) -> list[Path]:
    environments = data if data.name == "environments" else data / "environments"
    return [path for path in (environments / "small").iterdir() if path.is_dir()]


def no_network(monkeypatch):
    for name in [name for name in os.environ if name.upper().startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", NOWHERE)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")


def wait_for(condition, timeout_s=30.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


# --- commands that end with us -------------------------------------------------------------------------------


def test_a_command_hands_over_its_lines_and_its_exit_code():
    lines = []
    result = guarded.run([sys.executable, "-c", "print('one'); print('two'); exit(7)"], on_line=lines.append)
    assert lines == ["one", "two"]
    assert (result.exit_code, result.ok, result.cancelled) == (7, False, False)


def test_a_command_that_does_not_exist_fails_with_words():
    result = guarded.run(["no-such-command-anywhere"])
    assert not result.ok
    assert "no-such-command-anywhere" in result.text


def test_cancel_ends_the_command_and_what_it_started():
    cancelled = threading.Event()
    nested = f"import subprocess; subprocess.run({SLEEP!r})"
    before = set(psutil.Process().children(recursive=True))
    started = []

    def on_line(line):
        started.extend(set(psutil.Process().children(recursive=True)) - before)
        cancelled.set()

    result = guarded.run([sys.executable, "-c", nested], cancelled=cancelled, on_line=on_line)
    assert result.cancelled
    assert len(started) >= 3  # guard, command, what it started
    wait_for(lambda: not any(process.is_running() for process in started))


@pytest.mark.skipif(os.name == "nt", reason="kill -9 is POSIX's")
def test_a_killed_parent_takes_the_command_with_it():
    script = f"from engines.processes import guarded; guarded.run({SLEEP!r}, on_line=print)"
    parent = subprocess.Popen([sys.executable, "-u", "-c", script], cwd=ROOT, stdout=subprocess.PIPE)
    assert parent.stdout.readline() == b"up\n"
    family = psutil.Process(parent.pid).children(recursive=True)
    assert len(family) == 2
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_for(lambda: not any(process.is_running() for process in family))


# --- creating, finding, repairing ----------------------------------------------------------------------------


def test_an_environment_is_created_found_and_left_alone(small, spec):
    assert small.status("small").state == "missing"
    with pytest.raises(UnavailableError) as missing:
        small.interpreter("small")
    assert "setup small" in missing.value.remedy

    seen = []
    status = create(small, on_progress=seen.append)
    assert status.ready
    assert status.versions == {"six": "1.17.0"}
    assert status.size_bytes > 1_000_000
    assert seen[-1].fraction == 1.0
    fractions = [progress.fraction for progress in seen]
    assert fractions == sorted(fractions)
    found = subprocess.check_output(
        [small.interpreter("small"), "-c", "import six; print(six.__file__)"], text=True
    )
    assert str(status.interpreter.parents[1]) in found

    before = (status.interpreter.parents[1] / "complete.json").stat().st_mtime_ns
    assert create(small).ready
    assert (status.interpreter.parents[1] / "complete.json").stat().st_mtime_ns == before


def test_the_main_environment_is_the_one_we_run_in(small):
    assert small.interpreter("main") == Path(sys.executable)
    assert small.status("main").ready


def test_comments_and_line_ends_rebuild_nothing(made):
    requirements = made.log_path("small").parents[2] / "small.txt"
    requirements.write_bytes(b"# another comment\r\nsix==1.17.0\r\n\r\n")
    assert made.status("small").ready


def test_a_folder_without_its_marker_is_rubbish(made):
    folder = made.status("small").interpreter.parents[1]
    (folder / "complete.json").unlink()
    (folder / "rubbish").write_text("half made")
    assert made.status("small").state == "missing"
    assert "interrupted" in made.status("small").reason
    assert create(made).ready
    assert not (folder / "rubbish").exists()


def test_a_broken_environment_is_rebuilt(made):
    next(made.status("small").interpreter.parents[1].glob("[Ll]ib/**/six.py")).write_text(
        "raise RuntimeError"
    )
    assert create(made).ready
    subprocess.run([made.interpreter("small"), "-c", "import six"], check=True)


def test_a_lost_interpreter_and_other_pins_are_noticed_and_mended(made):
    folder = made.log_path("small").parents[2]
    made.status("small").interpreter.unlink()
    assert made.status("small").state == "broken"
    (folder / "small.txt").write_text("six==1.16.0\n")
    status = made.status("small")
    assert status.state == "outdated"
    assert "setup small" in status.remedy
    assert create(made).versions == {"six": "1.16.0"}
    assert len(folders(folder / "data")) == 1


def test_remove_leaves_nothing(made):
    made.remove("small")
    assert folders(made.log_path("small").parent) == []
    assert made.status("small").state == "missing"


# --- what goes wrong -----------------------------------------------------------------------------------------


def test_without_network_one_sentence_and_again_finishes(small, tmp_path, monkeypatch):
    with monkeypatch.context() as away:
        no_network(away)
        with pytest.raises(SetUpError) as caught:
            create(small)
    assert str(caught.value) == "Setting up Small failed: the package index could not be reached."
    assert "network" in caught.value.remedy
    assert folders(tmp_path / "data") == []
    assert NOWHERE.split("/")[2].split(":")[0] in small.log_path("small").read_text()
    assert create(small).ready


def test_a_package_nobody_has_is_named(small, spec):
    spec.requirements.write_text("six==999.0\n")
    with pytest.raises(SetUpError, match=r"no six==999\.0 for Python"):
        create(small)


def test_what_pip_says_of_a_long_path_is_understood(tmp_path, spec, monkeypatch):
    install = pytest.importorskip("pip._internal.commands.install")
    monkeypatch.setattr(install, "WINDOWS", True)
    error = OSError(errno.ENOENT, "No such file or directory", "C:\\" + "long\\" * 60)
    said = install.create_os_error_message(error, show_traceback=False, using_user_site=False)
    base = find_interpreter((HERE,))
    build = Build(spec, base, tmp_path, tmp_path / "log", lambda progress: None, threading.Event())
    failed = build._failure([sys.executable, "-m", "pip"], guarded.CommandResult(1, tuple(said.splitlines())))
    assert "longer than 260 characters" in str(failed)
    assert "--data-dir" in failed.remedy


def test_too_little_disk_is_said_with_numbers_before_anything_starts(tmp_path, spec):
    greedy = Environments(tmp_path / "data", specs=(replace(spec, disk_bytes=10**15),))
    with pytest.raises(SetUpError, match=r"needs about 1000000\.0 GB in .*, \d+\.\d GB are free"):
        create(greedy)


@pytest.mark.skipif(not Path("/dev/shm").is_dir() or os.geteuid() != 0, reason="mounting needs root on Linux")
def test_a_disk_that_fills_up_is_said_and_tidied(tmp_path, spec):
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(mount)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        tiny = Environments(mount / "data", specs=(replace(spec, disk_bytes=1),))
        with pytest.raises(SetUpError) as caught:
            create(tiny)
        assert "disk ran full" in str(caught.value)
        assert folders(mount / "data") == []
        subprocess.run(["mount", "-o", "remount,size=200m", str(mount)], check=True)
        assert create(tiny).ready
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_cancel_leaves_nothing(small, tmp_path):
    cancelled = threading.Event()
    with pytest.raises(SetUpCancelledError):
        create(small, cancelled, lambda progress: cancelled.set())
    assert folders(tmp_path / "data") == []


@pytest.mark.skipif(os.name == "nt", reason="kill -9 is POSIX's")
def test_killed_half_way_again_finishes(small, tmp_path):
    script = (
        "import sys; from pathlib import Path; from engines.environments.environments import Environments\n"
        "from tests.engines.environments.test_environments import small_spec\n"
        "folder = Path(sys.argv[1])\n"
        "Environments(folder / 'data', specs=(small_spec(folder),)).create('small', lambda progress: None)"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    child = subprocess.Popen(command, cwd=ROOT)
    wait_for(lambda: list((tmp_path / "data").glob("environments/small/*/pyvenv.cfg")))
    family = psutil.Process(child.pid).children(recursive=True)
    child.kill()
    child.wait()
    wait_for(lambda: not any(process.is_running() for process in family))
    assert folders(tmp_path / "data")  # half made, without a marker
    assert small.status("small").state == "missing"
    assert create(small).ready


def test_two_set_ups_at_once_share_one_environment(small, spec, tmp_path):
    others = Environments(tmp_path / "data", specs=(spec,))  # as another process would have
    results, waited = [], []
    threads = [
        threading.Thread(target=lambda e=e: results.append(create(e, on_progress=waited.append)))
        for e in (small, others)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result.ready for result in results] == [True, True]
    assert len(folders(tmp_path / "data")) == 1
    assert any(progress.stage == "queue" for progress in waited)


def test_an_unwritable_data_directory_is_one_sentence(tmp_path, spec):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(SetUpError, match="Cannot write to"):
        create(Environments(tmp_path / "file", specs=(spec,)))


# --- which Python --------------------------------------------------------------------------------------------


def test_a_python_that_is_missing_is_said_with_the_remedy(tmp_path, spec):
    future = Environments(tmp_path / "data", specs=(replace(spec, pythons=((3, 99),)),))
    status = future.status("small")
    assert status.state == "impossible"
    assert status.reason == (
        f"Small needs Python 3.99 (64-bit); the app runs on Python {HERE[0]}.{HERE[1]} and no other was found."
    )
    assert "--python PATH" in status.remedy
    with pytest.raises(UnavailableError):
        create(future)


def test_a_named_python_must_exist_and_fit(tmp_path):
    with pytest.raises(UnavailableError, match="does not run as a Python interpreter"):
        find_interpreter([HERE], str(tmp_path / "python"))
    with pytest.raises(UnavailableError, match=r"needs Python 3\.99 .* is Python"):
        find_interpreter([(3, 99)], sys.executable)
    assert find_interpreter([HERE], sys.executable).version[:2] == HERE


@pytest.mark.skipif(os.name == "nt", reason="writes a shell script")
def test_a_fitting_python_is_found_on_the_path_and_shims_that_lie_are_passed_over(tmp_path, monkeypatch):
    liar = tmp_path / "python3.98"
    liar.write_text("#!/bin/sh\nexit 127\n")
    honest = tmp_path / "python3.99"
    answer = json.dumps([str(honest), [3, 99, 1], 64, "x86_64"])
    honest.write_text(f"#!/bin/sh\necho '{answer}'\n")
    for script in (liar, honest):
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert find_interpreter([(3, 98), (3, 99)]).executable == str(honest)


@pytest.mark.skipif(os.name == "nt", reason="writes a shell script")
@pytest.mark.parametrize("how", ["found on the PATH", "named"])
def test_a_python_that_was_installed_since_is_seen_without_a_restart(tmp_path, spec, monkeypatch, how):
    python, now = tmp_path / "bin" / "python3.99", [0.0]
    python.parent.mkdir()
    monkeypatch.setenv("PATH", f"{python.parent}{os.pathsep}{os.environ['PATH']}")
    future = replace(spec, pythons=((3, 99),))
    named = str(python) if how == "named" else None
    environments = Environments(tmp_path / "data", named, specs=(future,), clock=lambda: now[0])
    assert environments.status("small").state == "impossible"
    answer = json.dumps([str(python), [3, 99, 1], 64, "x86_64"])
    python.write_text(f"#!/bin/sh\necho '{answer}'\n")
    python.chmod(0o755)
    now[0] += LOOK_AGAIN_S + 1
    assert environments.status("small").state == "missing"
    python.unlink()  # and the other way round
    now[0] += LOOK_AGAIN_S + 1
    assert environments.status("small").state == "impossible"


# --- both requirements files, for the systems we cannot run on -------------------------------------------------


RESOLVED = [
    *(("engines/environments/intel_npu.txt", version) for version in ("3.11", "3.12")),
    *(("requirements.txt", version) for version in ("3.11", "3.12", "3.13")),
]


@pytest.fixture(scope="module")
def resolving(tmp_path_factory) -> dict[tuple[str, str], tuple[subprocess.Popen, Path]]:
    """All resolutions at once: they mostly wait for the network."""
    uv = Path(sys.executable).with_name("uv.exe" if os.name == "nt" else "uv")
    command = [str(uv) if uv.exists() else shutil.which("uv"), "pip", "compile", "--only-binary", ":all:"]
    command += ["--python-platform", "x86_64-pc-windows-msvc", "--no-annotate", "--quiet"]
    if index := os.environ.get("PIP_INDEX_URL"):
        command += ["--index-url", index]
    folder, started = tmp_path_factory.mktemp("resolved"), {}
    for number, (file, version) in enumerate(RESOLVED):
        pins = folder / f"{number}.txt"
        arguments = ["--python-version", version, str(ROOT / file), "-o", str(pins)]
        started[file, version] = (
            subprocess.Popen([*command, *arguments], stderr=subprocess.PIPE, text=True, cwd=folder),
            pins,
        )
    yield started
    for process, _ in started.values():
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("file", "version"), RESOLVED)
def test_the_pins_resolve_to_wheels_on_windows(resolving, file, version):
    process, resolved = resolving[file, version]
    _, complaint = process.communicate(timeout=280)
    assert process.returncode == 0, complaint
    pins = {line.strip().lower() for line in resolved.read_text().splitlines()}
    lines = (line.split("#")[0] for line in (ROOT / file).read_text().splitlines())
    wanted = [line.split(";")[0].strip() for line in lines if 'sys_platform != "win32"' not in line]
    here = [pin for pin in wanted if "==" in pin]
    assert here
    assert set(here) <= pins
    names = {re.split(r"[=<>]", pin)[0] for pin in pins}
    assert {re.split(r"[=<>]", pin)[0].replace("_", "-") for pin in wanted if pin} <= names


def test_the_npu_environment_wants_what_the_library_is_known_to_work_with():
    (npu,) = ENVIRONMENTS
    text = npu.requirements.read_text()
    for pin in (
        "intel-npu-acceleration-library==1.4.0",
        "neural-compressor==3.7.1",
        "transformers==4.57.6",
        "numpy==1.26.4",
    ):
        assert pin in text
    assert npu.pythons == ((3, 11), (3, 12))
