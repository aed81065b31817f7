"""Events that show no progress, and what they would cost the browser all the same.

Gradio 6 tells the state of every event (pending, generating, complete) to the components that its progress is shown
on: to all its outputs unless it is told otherwise, and with every change to those of all events before it, too. For
each of them its browser side copies all properties, and those of everything that lies in it. With six panels, whose
columns are outputs, that held the page up for half a second at every prompt, though no progress is shown at all.
"""

from __future__ import annotations

import gradio as gr


def tell_no_progress(demo: gr.Blocks) -> None:
    """Let events that show no progress tell none; to be called inside the Blocks, when everything is wired."""
    nowhere = gr.State()  # not drawn: there is nothing to copy and nothing to update
    for event in demo.fns.values():
        if event.show_progress == "hidden":
            event.show_progress_on = [nowhere]
