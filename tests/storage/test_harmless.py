# ruff: noqa: E501
"""What a model wrote can do nothing in a terminal, in Markdown and in a spreadsheet; JSON stays exact."""

import csv
import json
import subprocess
import sys
from dataclasses import replace

import pytest
from markdown_it import MarkdownIt

from engines.protocol import Target
from engines.runtime.worker_process import PROJECT_ROOT
from engines.toolkit.spreadsheets import for_spreadsheet
from storage.exchange import exports
from storage.exchange.documents import conversation_markdown
from storage.exchange.harmless import for_terminal
from storage.records import Filter
from tests.storage.filling import CPU, run, turn
from ui.chat.run_view import RunView
from ui.cli.run import run_document, run_text

NASTY = (
    "\x1b]0;owned\x07title \x1b[2Jclear \x1b]52;c;cm0gLXJm\x07clipboard \x9b31mC1 \x8d\x90 over\rwritten "
    "\u202egnp.exe\u202c \u2066isolate\u2069 \x7f \x00 end\r\nnext\tline"
)
OBEYED = [chr(code) for code in (*range(9), *range(11, 32), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))]  # fmt: skip


def test_a_terminal_gets_nothing_to_obey():
    shown = for_terminal(NASTY)
    assert not [char for char in OBEYED if char in shown]
    assert "␛]0;owned␇title" in shown
    assert "<U+009B>31m" in shown
    assert "over␍written" in shown
    assert shown.endswith("end\nnext\tline")


@pytest.mark.parametrize("text", ["日本語 👩‍👩‍👧 🏴󠁧󠁢󠁥󠁮󠁧󠁿", "العربية שלום", "a\n\tb", "naïve"])
def test_ordinary_text_is_left_as_it_is(text):
    assert for_terminal(text) == text
    assert for_spreadsheet(text) == text


@pytest.mark.parametrize("char", OBEYED)
def test_every_such_character_is_shown(char):
    assert char not in for_terminal(f"a{char}b")


@pytest.mark.parametrize(
    "text",
    [
        *("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\r\n=1", "  =1", "\u00a0=1", "\u3000=1"),
        *(
            "＝1+1",
            "＋1",
            "－1",
            "＠x",
            "﹦1",
            "﹢1",
            "﹣1",
            "﹫x",
            "⁼1",
            "\ufeff=1",
            "\u200b=1",
            "\x00=1",
            "\x1b=1",
        ),
        *("\ufeff \t＝1", "\u2028=1", "\x0b=1", "\tplain", "\nplain", "⁺1", "₋1"),
    ],
)
def test_a_spreadsheet_runs_nothing(text):
    assert for_spreadsheet(text) == "'" + text


@pytest.mark.parametrize("text", ["", "a=1", "1+1", "(=1)", " a", "“=1”", "'=1"])
def test_what_is_no_formula_is_left_alone(text):
    assert for_spreadsheet(text) == text


def test_a_reply_is_shown_and_exported_harmless(store, tmp_path):
    conversation_id = store.start_conversation("\x1b]0;title\x07")
    for reply in (NASTY, "\n=cmd|'/c calc'!A1", "＝1+1"):
        run(store, turn(store, conversation_id, "\x1b[31mprompt"), reply)
    markdown = conversation_markdown(store.conversation(conversation_id))
    assert not [char for char in OBEYED if char in markdown]
    exports.export_selection(store.file, Filter(), tmp_path / "out.csv", "csv")
    with (tmp_path / "out.csv").open(encoding="utf-8-sig", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    assert texts[1:] == ["'\n=cmd|'/c calc'!A1", "'＝1+1"]
    exports.export_selection(store.file, Filter(), tmp_path / "out.jsonl", "jsonl")
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert {json.loads(line)["text"] for line in lines} == {NASTY, "\n=cmd|'/c calc'!A1", "＝1+1"}


@pytest.mark.parametrize(
    "reply",
    [
        "Look: <script>alert(1)</script>",
        '<img src="https://spy.example/1.png">',
        "![](https://spy.example/1.png)",
        "![a][b]\n\n[b]: https://spy.example/1.png",
        "[here](javascript:alert(1))",
        "[here](java&#x73;cript:alert(1))",
        "[here][b]\n\n[b]: <data:text/html,x>",
        "<javascript:alert(1)>",
        "[finished]: javascript:alert(1)",
        "It was cut here:\n```python\nprint(1)",
        "~~~~\n~~~",
        "<!-- all that follows",
        "````\n```\n",
        "<details><summary>more",
    ],
)
def test_a_markdown_export_shows_a_reply_and_obeys_none(store, reply):
    conversation_id = store.start_conversation("A <b>title</b> ![](https://spy.example) `")
    run(store, turn(store, conversation_id, reply), reply, target=replace(CPU, model="<b>m</b>"))
    markdown = conversation_markdown(store.conversation(conversation_id))
    page = MarkdownIt("commonmark")
    page.validateLink = lambda _url: True
    blocks = page.parse(markdown)
    tokens = [*blocks, *(child for block in blocks for child in block.children or ())]
    assert not [t for t in tokens if t.type in ("html_block", "html_inline", "image", "link_open")]
    assert [t.content for t in tokens if t.type == "fence"] == [f"{reply}\n"] * 2
    assert blocks[-2].content.startswith("*finished, TTFT")  # what follows the reply is not part of it


def test_plain_markdown_is_exported_as_it_was_written(store):
    reply = "## Steps\n\n1. **Do** `<this>`\n\n```html\n<b>x</b>\n```\n\n[more](https://example.org) & 1 < 2 <https://a.example>"
    conversation_id = store.start_conversation("Steps")
    run(store, turn(store, conversation_id, reply), reply)
    assert f"\n{reply}\n" in conversation_markdown(store.conversation(conversation_id))


def test_run_prints_it_harmless_and_json_exact():
    view = RunView(1, Target("echo", "CPU", "fast"), phase="finished", text=NASTY, reasoning=NASTY)
    assert not [char for char in OBEYED if char in run_text(view)]
    assert json.loads(json.dumps(run_document(view)))["text"] == NASTY


def test_whatever_a_command_prints_is_harmless(tmp_path):
    """Also where nobody thought of it: an error that quotes what it was given."""
    done = subprocess.run(
        [sys.executable, "app.py", "history", "show", "\x1b]0;x\x07id", "--data-dir", str(tmp_path)],
        cwd=PROJECT_ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
    )
    assert done.returncode
    assert "␛]0;x␇id" in done.stderr
    assert "\x1b" not in done.stderr + done.stdout
