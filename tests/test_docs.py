"""The README tells the truth: its engine table and its commands are checked against the code."""

import re

import pytest

import app
from engines import ENGINES
from engines.runtime.worker_process import PROJECT_ROOT

README = (PROJECT_ROOT / "README.md").read_text(encoding="utf-8")


def engine_rows() -> list[str]:
    return [
        f"| `{spec.name}` | [{spec.title}]({spec.homepage}) | {', '.join(spec.devices) or 'those you add'} | "
        f"{', '.join(spec.precisions)} | {'yes' if spec.reuses_kv_cache else 'no'} |"
        for spec in ENGINES
    ]


def test_the_engine_table_is_that_of_the_code():
    table = README.split("<!-- engines -->")[1].split("<!-- /engines -->")[0]
    assert table.strip().splitlines()[2:] == engine_rows()


@pytest.mark.parametrize("command", re.findall(r"`python app\.py ([a-z]+)", README))
def test_every_command_in_the_readme_exists(command, capsys):
    with pytest.raises(SystemExit) as ended:
        app.main([command, "--help"])
    assert ended.value.code == 0
    assert command in capsys.readouterr().out


def test_the_project_says_nothing_of_absolute_paths():
    assert not re.search(r"(/work/|/root/|/home/\w)", README)
