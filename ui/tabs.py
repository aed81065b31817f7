"""What happens when one of the page's tabs comes into sight: a tab that nobody looks at costs a load nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr
from gradio.context import Context


def tab_around() -> gr.Tab | None:
    """The Tab that is being built."""
    block = Context.block
    while block is not None and not isinstance(block, gr.Tab):
        block = block.parent
    return block


def on_show(attach: Callable[[Callable[..., Any]], Any]) -> None:
    """Attach to what shows this part of the page: the surrounding tab's selection, without one the page's load."""
    tab = tab_around()
    attach(Context.root_block.load if tab is None else tab.select)
