"""Gradio is imported without its work for editors, and works as ever."""

import subprocess
import sys

from engines.runtime.worker_process import PROJECT_ROOT

SCRIPT = """
import sys
import ui
assert "gradio" not in sys.modules  # the command line stays light
import gradio as gr
from gradio import component_meta, events
assert component_meta.create_or_modify_pyi(object, "x", []) is None
class Own(gr.Textbox):
    pass
with gr.Blocks() as demo:
    box, own = gr.Textbox(), Own()
    gr.Button().click(lambda text: text, box, own)
listed = demo.get_config_file()
kinds = [component["type"] for component in listed["components"]]
print(len(listed["dependencies"]), kinds.count("textbox"), kinds.count("own"))
"""


def test_components_and_events_work_without_their_stubs():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1", "1", "1"]
