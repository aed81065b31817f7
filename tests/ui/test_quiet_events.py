"""No event that shows no progress has the browser go through the page for it."""

import gradio as gr

from tests.ui.conftest import serve_page
from ui.quiet_events import tell_no_progress


def dependencies(demo):
    return {one["api_name"]: one for one in demo.get_config_file()["dependencies"]}


def test_only_events_that_show_progress_tell_their_outputs():
    with gr.Blocks() as demo:
        with gr.Column() as column:
            box = gr.Textbox()
        gr.Button().click(lambda: gr.skip(), None, [column, box], show_progress="hidden", api_name="quiet")
        gr.Button().click(lambda: "", None, box, api_name="shown")
        tell_no_progress(demo)
    told = dependencies(demo)
    (nowhere,) = told["quiet"]["show_progress_on"]
    assert nowhere not in {box._id, column._id}
    assert told["quiet"]["outputs"] == [column._id, box._id]
    assert told["shown"]["show_progress_on"] is None


def test_the_pages_quiet_events_tell_nothing(tmp_path):
    demo, arena = serve_page(tmp_path)
    try:
        drawn = demo.get_config_file()
    finally:
        demo.close(verbose=False)
        arena.manager.shutdown()
        arena.store.close()
    shown_on = {
        tuple(one["show_progress_on"] or ())
        for one in drawn["dependencies"]
        if one["show_progress"] == "hidden"
    }
    ((nowhere,),) = shown_on
    states = {one["id"] for one in drawn["components"] if one["type"] == "state"}
    assert nowhere in states
    containers = {
        one["id"] for one in drawn["components"] if one["type"] in ("column", "row", "group", "accordion")
    }
    for one in drawn["dependencies"]:
        if one["show_progress"] != "hidden":
            assert not containers & set(one["outputs"]), "copies everything that lies in it, at every event"
