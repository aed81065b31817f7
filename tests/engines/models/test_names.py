"""A path is made absolute where it enters: nothing behind the command line or the page depends on a folder of one."""

import json
import nturl2path
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engines.engine import ModelError
from engines.models import model_names
from engines.models.download.hub_cache import cache_dir
from engines.models.model_names import DEMO_FOLDER, entered, is_path, resolve

APP = Path(__file__).parents[3] / "app.py"


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A working directory with a model in `models/phi`, which reads like a Hugging Face id."""
    shutil.copytree(DEMO_FOLDER, tmp_path / "models" / "phi")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "name", ["./models/phi", "models/../models/phi/", "models/phi", '"./models/phi"', " ./models/phi "]
)
def test_a_folder_becomes_absolute(name, here):
    assert entered(name, look_around=True) == str(here / "models" / "phi")


def test_what_is_no_folder_stays_a_name(here):
    assert entered("demo", look_around=True) == "demo"
    assert entered("org/name", look_around=True) == "org/name"
    assert entered("models/phi") == "models/phi"  # on the page nobody stands in a folder
    assert entered("https://huggingface.co/org/name/tree/main") == "org/name"
    assert entered(".") == str(here)
    assert entered("~/x") == str(Path.home() / "x")
    assert entered((here / "models").as_uri()) == str(here / "models")


@pytest.mark.parametrize(
    "address",
    [
        "https://huggingface.co/org/name?library=transformers",
        "http://www.huggingface.co/org/name/blob/main/config.json#L3",
        "huggingface.co/org/name",
        "hf.co/org/name",
        "org/name/",
    ],
)
def test_a_repository_is_known_by_every_address_it_is_copied_as(address, here):
    assert entered(address) == entered(address, look_around=True) == "org/name"


def test_a_name_that_no_file_system_takes_is_only_a_name(here):
    assert entered("x" * 300, look_around=True) == "x" * 300
    with pytest.raises(ModelError, match="neither a folder nor"):
        resolve("x" * 300)


def test_the_address_of_a_folder_with_a_percent_sign_is_decoded_once(here):
    assert entered((here / "100%25 phi").as_uri()) == str(here / "100%25 phi")


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("file:///C:/Users/Max%20M%C3%BCller/phi", "C:\\Users\\Max Müller\\phi"),
        ("file://localhost/C:/phi", "C:\\phi"),
        ("file://server/share/phi%202", "\\\\server\\share\\phi 2"),
        ("file:////server/share/phi", "\\\\server\\share\\phi"),
    ],
)
def test_an_address_on_windows(address, path, monkeypatch):
    monkeypatch.setattr(model_names, "url2pathname", nturl2path.url2pathname)
    with monkeypatch.context() as windows:
        windows.setattr(os, "name", "nt")
        found = model_names._path_of(address)
    assert found == path


def test_the_bundled_model_keeps_its_name(here):
    (here / "demo").mkdir()
    assert entered("demo", look_around=True) == "demo"


@pytest.mark.parametrize(
    "name", ["C:\\models\\phi", "C:/models/phi", "\\\\server\\share\\phi", "..\\phi", "D:phi"]
)
def test_windows_paths_are_paths_everywhere(name):
    assert is_path(name)
    assert resolve(entered(name)).folder is not None
    if os.name != "nt":
        assert entered(name).endswith(name)  # no system's own path is hung before another's


def test_a_relative_name_in_an_old_conversation_means_one_folder(here):
    assert resolve("./models/phi").folder == here / "models" / "phi"


@pytest.mark.parametrize("variable", ["HF_HOME", "HF_HUB_CACHE"])
def test_a_relative_cache_is_absolute_for_the_children(variable, here, monkeypatch):
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv(variable, "cache")
    assert cache_dir().is_relative_to(here / "cache")


def run(here: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(APP), *arguments],
        cwd=here,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_the_command_line_works_from_anywhere_on_relative_paths(here):
    done = run(
        here,
        "models",
        "convert",
        "./models/phi",
        "--on",
        "onnxruntime-genai/CPU/int4",
        "--data-dir",
        "./data",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    made = Path(json.loads(done.stdout)["prepared"][0]["path"])
    assert made.is_relative_to(here / "data" / "models")
    done = run(here, "models", "import", "models/phi", "--data-dir", "data", "--json")
    assert json.loads(done.stdout)["imported"]["model"] == str(here / "models" / "phi")
    asked = [
        "run",
        "Hello!",
        "--model",
        "models/phi",
        "--on",
        "onnxruntime-genai/CPU/int4",
        "--max-new-tokens",
        "4",
    ]
    done = run(
        here / "models", *[a.replace("models/phi", "./phi") for a in asked], "--data-dir", "../data", "--json"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["runs"][0]["model"] == str(here / "models" / "phi")
    assert not (APP.parent / "data").exists()
