# ruff: noqa: E501
"""Thought, answer and markup stay apart from the first token to the database; real workers, a real file."""

import json
import shutil
import sqlite3

import pytest

from engines.environments.environments import Environments
from engines.protocol import Message, Target
from engines.runtime.manager import EngineManager
from storage.exchange import exports, imports
from storage.exchange.documents import conversation_markdown
from storage.records import Filter
from storage.store import Store
from tests.helpers import echo_engine
from tests.helpers.worlds import DEMO_WEIGHTS, OneFolder
from ui.chat.conversations import Talks
from ui.chat.gates import FairLine, Limits, VisitorGate
from ui.chat.settings import Settings, logged_settings
from ui.chat.turns import Turns
from ui.cli.run import run_document, run_text
from ui.compare.actions import fields_of, settings_from

ECHO = Target("echo", "CPU", "fast")
AS_TYPED = "{{ messages[-1].content }}"
"""With it the echo says exactly what it was asked, so a prompt can spell what a model would write."""
THINKS = (
    AS_TYPED
    + "{# <think></think> #}{% for m in messages[:-1] %}{% if m.reasoning_content %}{% endif %}{% endfor %}"
)
OPENS = AS_TYPED + "{% if enable_thinking is not defined or enable_thinking %}<think>\n{% else %}<think>\n\n</think>\n\n{% endif %}"  # fmt: skip
REPLY = "<think>\nA thought about it.\n</think>\n\nThe answer is 4."


def folder_with(path, template):
    shutil.copytree(DEMO_WEIGHTS, path)
    (path / "chat_template.jinja").write_text(template)
    return path


class World:
    def __init__(self, tmp_path, template):
        self.store = Store(tmp_path / "arena.sqlite3")
        folder = OneFolder(folder_with(tmp_path / "model", template))
        self.manager = EngineManager(tmp_path, folder, Environments(tmp_path), specs=(echo_engine.SPEC,))
        self.turns = Turns(self.manager, self.store, lambda: {"name": "here"})

    def ask(self, text, conversation_id=None, **settings):
        turn = self.turns.send(
            text,
            [(1, ECHO)],
            Settings(**{"max_new_tokens": 200, **settings}),
            conversation_id=conversation_id,
        )
        assert turn.wait(60)
        return turn

    def rows(self, sql="SELECT * FROM runs ORDER BY id"):
        connection = sqlite3.connect(self.store.path)
        connection.row_factory = sqlite3.Row
        found = [dict(row) for row in connection.execute(sql)]
        connection.close()
        return found

    def close(self):
        self.turns.stop_everything()
        self.manager.shutdown()
        self.store.close()


@pytest.fixture
def world(tmp_path, request):
    world = World(tmp_path, getattr(request, "param", THINKS))
    yield world
    world.close()


def test_a_thought_is_kept_apart_and_measured(world, tmp_path):
    turn = world.ask(REPLY)
    view = turn.runs[0].view()
    assert (view.reasoning, view.text) == ("A thought about it.", "The answer is 4.")
    metrics = view.metrics
    assert metrics.reasoning_tokens >= 4
    assert metrics.answer_tokens >= 4
    assert metrics.reasoning_tokens + metrics.answer_tokens < metrics.output_tokens  # the rest is markup
    assert metrics.ttft_s <= metrics.first_reasoning_s < metrics.first_answer_s <= metrics.answer_s
    assert metrics.first_answer_s in metrics.token_offsets_s

    (row,) = world.rows()
    assert (row["reasoning"], row["text"]) == ("A thought about it.", "The answer is 4.")
    assert row["reasoning_tokens"] == metrics.reasoning_tokens
    (figures,) = world.rows("SELECT * FROM run_metrics")
    assert figures["first_answer_s"] == pytest.approx(metrics.first_answer_s, abs=2e-6)
    assert figures["answer_s"] == pytest.approx(metrics.answer_s, abs=2e-6)

    document = json.loads(json.dumps(run_document(view)))
    assert (document["reasoning"], document["text"]) == (view.reasoning, view.text)
    assert document["first_reasoning_s"] < document["first_answer_s"] <= document["answer_s"]
    assert document["reasoning_tokens"] + document["answer_tokens"] < document["output_tokens"]
    assert "A thought about it." in run_text(view)
    assert "<think>" not in run_text(view)

    conversation = world.store.conversation(turn.conversation_id)
    assert "> A thought about it." in conversation_markdown(conversation)
    logged = conversation.turns[0].runs[0]
    assert (logged.reasoning, logged.metrics.answer_tokens) == (view.reasoning, metrics.answer_tokens)
    exports.export_selection(world.store.file, Filter(), tmp_path / "out.jsonl", "jsonl")
    elsewhere = Store(tmp_path / "elsewhere.sqlite3")
    imports.import_file(elsewhere.file, tmp_path / "out.jsonl")
    again = elsewhere.conversation(turn.conversation_id).turns[0].runs[0]
    elsewhere.close()
    assert (again.reasoning, again.text) == (view.reasoning, view.text)
    assert again.metrics.first_answer_s == logged.metrics.first_answer_s
    for kind in ("csv", "parquet"):
        assert exports.export_selection(world.store.file, Filter(), tmp_path / f"out.{kind}", kind) == 1
    assert "A thought about it." in (tmp_path / "out.csv").read_text(encoding="utf-8-sig")


@pytest.mark.parametrize("world", [OPENS], indirect=True)
def test_a_thought_that_the_template_opened(world):
    # The echo repeats what the template wrote, too: the model closes here what it never opened.
    view = world.ask("Is it so?\n</think>\n\nYes. ").runs[0].view()
    assert view.reasoning == "Is it so?"
    assert view.text.startswith("Yes.")
    assert world.ask("Yes. ", thinking=False).runs[0].view().reasoning == ""


def test_a_thought_stays_out_of_the_next_turn(world):
    first = world.ask(REPLY)
    world.ask("again", first.conversation_id)
    messages = world.store.panel_messages(first.conversation_id, 1)
    assert messages[1] == Message("assistant", "The answer is 4.", "A thought about it.")
    reopened = Store(world.store.path)
    assert reopened.panel_messages(first.conversation_id, 1) == messages
    reopened.close()


def test_a_reply_cut_in_its_thought_goes_on_thinking(world):
    turn = world.ask(REPLY, max_new_tokens=14)
    cut = turn.runs[0].view()
    assert cut.reasoning
    assert cut.text == ""
    assert "still thinking" in cut.warning
    assert cut.metrics.first_answer_s is None
    assert cut.metrics.answer_s is None
    asked = cut.metrics.prompt_tokens
    # What was asked is not lost to the next turn, though no answer came.
    heard = world.store.panel_messages(turn.conversation_id, 1)
    assert heard == (Message("user", REPLY), Message("assistant", "", cut.reasoning))
    world.turns.carry_on(turn, 1)
    assert turn.wait(60)
    gone_on = turn.runs[0].view()
    # The echo starts over, behind what was said: everything until it closes the thought is thought.
    assert gone_on.reasoning.startswith(cut.reasoning)
    assert gone_on.metrics.prompt_tokens == asked + cut.tokens
    assert world.rows()[1]["reasoning"] == gone_on.reasoning


def test_a_visitor_sees_the_thought_too_and_why_there_is_no_answer(world):
    """Once the panel stayed empty while the model thought, and when that was all."""
    gate = VisitorGate("a visitor", FairLine(1), Limits())
    turn = world.turns.send(REPLY, [(1, ECHO)], Settings(max_new_tokens=14), gate=gate)
    assert turn.wait(60)
    view = turn.runs[0].view()
    assert (view.text, bool(view.reasoning), view.reasoning_tokens > 0) == ("", True, True)
    assert "still thinking" in view.warning
    assert view.peak_rss_bytes is None


@pytest.mark.parametrize("world", [AS_TYPED], indirect=True)
def test_a_model_that_knows_no_marks_keeps_its_text_unless_a_thought_shows_in_the_end(world):
    for text in (REPLY.replace("</think>", ""), f"Look: {REPLY}"):
        view = world.ask(text).runs[0].view()
        assert (view.text, view.reasoning) == (text, "")
        assert view.metrics.reasoning_tokens == 0
        assert view.metrics.answer_tokens == view.metrics.output_tokens
        assert view.metrics.first_answer_s == view.metrics.ttft_s
    only_ended = world.ask(REPLY.replace("<think>\n", "")).runs[0].view()
    assert (only_ended.reasoning, only_ended.text) == ("A thought about it.", "The answer is 4.")
    assert world.rows()[-1]["text"] == only_ended.text
    turn = world.ask(REPLY)
    view = turn.runs[0].view()
    assert (view.reasoning, view.text) == ("A thought about it.", "The answer is 4.")
    metrics = view.metrics
    assert 4 <= metrics.reasoning_tokens < metrics.output_tokens - metrics.answer_tokens
    assert metrics.ttft_s <= metrics.first_reasoning_s < metrics.first_answer_s
    assert world.rows()[-1]["reasoning"] == view.reasoning
    before = view.prompt_tokens
    world.turns.carry_on(turn, 1)  # the model gets back what it wrote, marks and all
    assert turn.wait(60)
    assert turn.runs[0].view().prompt_tokens == before + metrics.output_tokens


@pytest.mark.parametrize("world", ["{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"], indirect=True)  # fmt: skip
def test_what_was_done_with_a_lost_system_prompt_is_told_and_kept(world):
    turn = world.ask("Hello", system_prompt="Answer in rhyme.")
    view = turn.runs[0].view()
    assert "no place for a system prompt" in view.note
    assert view.text.startswith("Answer in rhyme.")
    assert world.rows()[0]["note"] == view.note
    assert run_document(view)["note"] == view.note
    assert view.note in run_text(view)
    assert view.note in conversation_markdown(world.store.conversation(turn.conversation_id))


def test_texts_that_are_not_kept_include_the_thought(world):
    world.store.set_setting("keep_text", False)
    world.ask(REPLY)
    world.store.set_setting("keep_text", True)
    world.ask(REPLY)
    assert [row["reasoning"] for row in world.rows()] == [None, "A thought about it."]
    world.store.remove_texts()
    assert [row["reasoning"] for row in world.rows()] == [None, None]


def test_what_a_command_began_goes_on_elsewhere_with_all_its_context(world):
    """A conversation begun by another process, on three panels with a system prompt, opened here."""
    elsewhere = Store(world.store.path)
    other = Turns(world.manager, elsewhere, lambda: {"name": "here"})
    panels = [(1, ECHO), (2, ECHO), (4, ECHO)]
    settings = Settings(
        system_prompt="Answer in rhyme.", max_new_tokens=50, thinking=False, seed=7, top_p=0.5
    )
    begun = other.send("one", panels, settings)
    assert begun.wait(60)
    talks = Talks(world.store, world.turns)
    talk = talks.opened(begun.conversation_id)
    assert talk.latest().panels() == (1, 2, 4)
    assert talk.latest().settings == settings

    more = other.send("two", [(2, ECHO)], settings, conversation_id=begun.conversation_id)
    assert more.wait(60)
    assert [turn.prompt for turn in talks.opened(begun.conversation_id).turns] == ["one", "two"]
    here = world.turns.send("three", panels, settings, conversation_id=begun.conversation_id)
    assert here.wait(60)
    talks.started(here)
    heard = {panel: [m.content for m in world.store.panel_messages(begun.conversation_id, panel) if m.role == "user"]
             for panel, _ in panels}  # fmt: skip
    assert heard == {1: ["one", "three"], 2: ["one", "two", "three"], 4: ["one", "three"]}
    last = other.send("four", [(1, ECHO)], settings, conversation_id=begun.conversation_id)
    assert last.wait(60)
    shown = talks.opened(begun.conversation_id).turns
    assert [turn.prompt for turn in shown] == ["one", "two", "three", "four"]
    assert [turn.live is not None for turn in shown] == [False, False, True, False]
    elsewhere.close()


@pytest.mark.parametrize(
    "settings", [Settings(), Settings("Be brief.", 64, 0.7, 0.9, 40, 1.1, 7, thinking=True)]
)
def test_the_page_shows_the_settings_a_conversation_was_held_with(settings):
    assert settings_from(*fields_of(settings)) == settings


@pytest.mark.parametrize(
    "fields", [{"temperature": "hot"}, {"stop": 3}, {"thinking": "yes"}, {"max_new_tokens": 0}]
)
def test_logged_settings_that_make_no_sense_are_none(fields):
    assert logged_settings(fields, None) is None
