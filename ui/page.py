"""The page: `build` puts the tabs together, theme.py's `launch_options` say how Gradio is to serve it."""

from __future__ import annotations

import os

import gradio as gr

from engines.environments.environments import Environments
from engines.hardware import machine_facts
from engines.models.library import ModelLibrary
from engines.runtime.manager import EngineManager
from storage.measurements import Measurements
from storage.store import Store
from ui.access import authorise
from ui.chat.turns import Turns
from ui.compare import tab as compare
from ui.history import tab as history_tab
from ui.history import trends_tab
from ui.measure import tab as measure_tab
from ui.measure.desk import Desk
from ui.models import tab as models_tab
from ui.models.background import ModelWork
from ui.quiet_events import tell_no_progress
from ui.share.owner_panel import OwnerPanel
from ui.share.sharing import Sharing
from ui.share.visitors import Visitors
from ui.system import tab as system_tab
from ui.system.programs import Doors

TITLE = "Backend Arena"
HEADER = (
    '<div class="top"><h1>Backend Arena</h1><p>One prompt, every local backend, side by side</p>'
    '<button type="button" id="theme-switch">Light / dark</button></div>'
)


def build(
    manager: EngineManager,
    store: Store,
    turns: Turns,
    library: ModelLibrary,
    environments: Environments,
    sharing: tuple[Sharing, Visitors] | None = None,
    doors: Doors | None = None,
    desk: Desk | None = None,
) -> gr.Blocks:
    """The whole page. Serve it with `demo.launch(**launch_options())`.

    `sharing`: what the Share button works with; without it there is none. `doors`: other people's servers and the
    API, where the app has them. `desk`: what runs measurements; None for one of the page's own.
    """
    desk = desk or Desk(manager, Measurements(store), machine_facts)
    # Gradio would put every event into a pandas frame, for a monitoring page that is switched off.
    os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", "1000000000")
    # Copies of exported and attached files, which Gradio makes to serve them, go after a day.
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400)) as demo:
        with gr.Row(elem_id="header-row"):
            gr.HTML(HEADER, elem_id="header", js_on_load=None)
            share = gr.Button(
                "Share", size="sm", visible=sharing is not None, elem_id="share", scale=0, min_width=80
            )
        panel = None
        if sharing is not None:
            panel = OwnerPanel(*sharing, store, lambda request: page.shown_targets(request))
        with gr.Tabs(elem_id="tabs", selected="compare") as tabs:
            with gr.Tab("Compare", id="compare"):
                work = ModelWork(library)
                page = compare.build(manager, store, turns, library, work)
            with gr.Tab("Measure", id="measure-tab"):
                measured = measure_tab.build(desk, store, library)
            with gr.Tab("History", id="history"):
                history = history_tab.build(store)
            with gr.Tab("Trends", id="trends"):
                trends_tab.build(store)
            with gr.Tab("Models", id="models-tab"), gr.Column(elem_id="models"):
                models_tab.build(library, manager, work)
            with gr.Tab("System", id="system-tab"):
                system_tab.build(manager, environments, doors)
        page.wire_load(demo)
        if panel is not None:
            panel.wire(share)
        opened = page.wire_open(history.open_in_compare)
        opened.then(lambda: gr.Tabs(selected="compare"), None, tabs, show_progress="hidden")
        page.wire_use(measured.used)
        tell_no_progress(demo)
    authorise(demo)
    return demo
