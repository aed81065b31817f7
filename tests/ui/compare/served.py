"""The page on the test engines in a process of its own, for tests that end it: `DATA_DIR PORT [updated]`."""

import sys
import threading
from pathlib import Path

import gradio as gr

from tests.ui.conftest import serve_page

if __name__ == "__main__":
    if "updated" in sys.argv:  # as after an update: the same page has other component numbers
        with gr.Blocks():
            for _ in range(7):
                gr.Textbox()
    serve_page(Path(sys.argv[1]), port=int(sys.argv[2]))
    sys.stdout.write("served\n")
    sys.stdout.flush()
    threading.Event().wait()
