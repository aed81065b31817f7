"""A page that is opened while the engines are still asked ends up with panels that can run here."""

from types import SimpleNamespace

import gradio as gr
import pytest

from engines.models.library import ModelLibrary
from storage.store import Store
from tests.helpers import echo_engine
from tests.helpers.worlds import manager_on
from tests.ui.compare.driver import panels_setting
from tests.ui.conftest import ABSENT, ECHO
from ui.chat.turns import Turns
from ui.compare import tab as compare_tab

ASKING = SimpleNamespace(session_hash="one tab")


@pytest.fixture
def compare(tmp_path):
    """The tab of an app that has just started; no engine has answered yet."""
    manager = manager_on(tmp_path, specs=(ABSENT, ECHO, echo_engine.SPEC))
    store = Store(tmp_path / "arena.sqlite3")
    with gr.Blocks(analytics_enabled=False):
        yield compare_tab.build(manager, store, Turns(manager, store, dict), ModelLibrary(tmp_path))
    manager.shutdown()
    store.close()


@pytest.mark.parametrize("answered", ["before the page asks", "while it asks"])
def test_panels_that_were_guessed_are_chosen_anew_once_the_engines_have_answered(compare, answered):
    compare._load("", ASKING)
    page = compare.desk.page(ASKING)
    assert page.targets[1].engine == "absent"  # nothing is known yet
    if answered == "before the page asks":
        compare.desk.manager.availability()
    compare._probe(ASKING)
    assert all(not compare.desk.offer().trouble(target) for target in page.chosen().values())


def test_a_panel_that_is_added_can_run_too(compare):
    compare.desk.keep("compare.panels", panels_setting(("echo", "fast")))
    compare._load("", ASKING)
    compare._probe(ASKING)
    page = compare.desk.page(ASKING)
    compare.actions.add_panel(page)
    assert len(page.shown) == 2
    assert all(not compare.desk.offer().trouble(target) for target in page.chosen().values())
