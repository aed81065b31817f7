"""The page: `build` puts the tabs together, `launch_options` says how Gradio is to serve it."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ui import compare
from ui.theme import launch_options

__all__ = ["build", "launch_options"]

TITLE = "Backend Arena"
HEADER = (
    '<div class="top"><h1>Backend Arena</h1><p>One prompt, every local backend, side by side</p>'
    '<button type="button" id="theme-switch" aria-label="Switch between light and dark">Light / dark</button></div>'
)


def build(manager: Any, store: Any, turns: Any, library: Any, environments: Any) -> gr.Blocks:
    """The whole page. Serve it with `demo.queue().launch(**launch_options())`."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as demo:
        gr.HTML(HEADER, elem_id="header", js_on_load=None)
        with gr.Tabs(elem_id="tabs"), gr.Tab("Compare", id="compare"):
            page = compare.build(manager, store, turns, library)
        page.wire_load(demo)
    return demo
