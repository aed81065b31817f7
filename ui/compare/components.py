"""The Compare tab's components: six fixed panels, the prompt, settings, summary. Layout only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ui.chat.settings import BOUNDS
from ui.compare import model_menu
from ui.compare.browser_tab import PANELS, Desk

EXAMPLES = (
    ("Say hello", "Hello! Who are you?"),
    ("What is an NPU?", "What is an NPU?"),
    ("int4 or int8?", "What is the difference between int4 and int8?"),
    ("Tell a story", "Tell me a story about a lighthouse."),
)
ASK_ON_LOAD = """
const start = () => window.backendArena
  ? window.backendArena.attach(props, server, trigger, watch)
  : setTimeout(start, 30);
start();
"""
"""Hands the page's script what it needs to ask for changes, as soon as it is there."""
READ_ADDRESS = "() => new URLSearchParams(window.location.search).get('c') || ''"
SENDING = "(...values) => window.backendArena?.sending(values) || [...values.slice(0, -1), '']"
"""Puts what the browser alone knows in the place of the last value."""
TAKEN = "() => { window.backendArena?.taken(); }"
"""Says that the server has answered to a prompt, and asks at once for what that has changed."""
LOADED = "() => { document.getElementById('live').dataset.loaded = 'yes'; window.backendArena?.ask(); }"
"""Says, for whoever drives the page, that nothing of its loading will change it any more, and asks what runs."""
ASK_NOW = "() => { window.backendArena?.ask(); }"
WRITE_NOW = "() => { document.querySelector('#prompt textarea')?.focus(); window.backendArena?.ask(); }"
"""The same, and the person goes on writing."""
ALL_PANELS = "all"
SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty", "seed")


@dataclass
class PanelParts:
    """Components of one panel."""

    column: gr.Column
    setup: gr.Accordion
    engine: gr.Dropdown
    device: gr.Dropdown
    precision: gr.Dropdown
    model: gr.Dropdown
    why: gr.HTML
    log: gr.Textbox
    stop: gr.Button
    retry: gr.Button
    carry_on: gr.Button
    unload: gr.Button
    show_log: gr.Button
    remove: gr.Button

    @property
    def menus(self) -> list[Any]:
        return [self.engine, self.device, self.precision, self.model]


@dataclass
class Parts:
    """Components of the whole tab."""

    panels: dict[int, PanelParts]
    welcome: gr.Column
    welcome_text: gr.HTML
    first_run: gr.Button
    dismiss: gr.Button
    model_button: gr.Button
    model_list: gr.Column
    model_choices: gr.HTML
    offer: gr.Column
    offer_text: gr.HTML
    offer_get: gr.Button
    offer_no: gr.Button
    offer_stop: gr.Button
    offer_model: gr.State
    offer_timer: gr.Timer
    add: gr.Button
    new: gr.Button
    edit: gr.Button
    blind: gr.Checkbox
    sets_button: gr.Button
    sets: gr.Row
    set_name: gr.Dropdown
    use_set: gr.Button
    save_set: gr.Button
    delete_set: gr.Button
    prompt: gr.Textbox
    send: gr.Button
    stop_all: gr.Button
    mode: gr.Radio
    to_panel: gr.Dropdown
    attach: gr.UploadButton
    detach: gr.Button
    examples: list[gr.Button]
    attachment: gr.State
    system_prompt: gr.Textbox
    max_new_tokens: gr.Number
    temperature: gr.Number
    top_p: gr.Number
    top_k: gr.Number
    repetition_penalty: gr.Number
    seed: gr.Textbox
    thinking: gr.Radio
    ignored: gr.HTML
    vote: gr.Radio
    diff_one: gr.Dropdown
    diff_other: gr.Dropdown
    diff_text: gr.HTML
    conversation: gr.Textbox
    live: gr.HTML

    def sampling(self) -> list[Any]:
        """Settings that an engine may not honour, in the order of SAMPLING."""
        return [self.temperature, self.top_p, self.top_k, self.repetition_penalty, self.seed]

    def settings(self) -> list[Any]:
        """In the order of `settings_from`."""
        return [self.system_prompt, self.max_new_tokens, *self.sampling(), self.thinking]


def build_parts(desk: Desk, changes: Callable[..., Any]) -> Parts:
    """Lay the tab out; call inside the Blocks."""
    named: dict[str, Any] = {}
    panels: dict[int, PanelParts] = {}
    _welcome(named)
    model_menu.build(named)
    _toolbar(named)
    models = desk.model_choices()
    with gr.Row(elem_classes="panels", elem_id="panels"):
        for panel in PANELS:
            panels[panel] = _panel(panel, models)
    _composer(named)
    _settings(named)
    _strip()
    _after_turn(named)
    _hidden(named, changes)
    return Parts(panels, **named)


def _welcome(named: dict[str, Any]) -> None:
    with gr.Column(visible=False, elem_id="welcome", elem_classes="card welcome") as named["welcome"]:
        named["welcome_text"] = gr.HTML("")
        with gr.Row(elem_classes="bar"):
            named["first_run"] = gr.Button(
                "Run a first comparison", variant="primary", size="md", elem_id="first-run"
            )
            named["dismiss"] = gr.Button("Not now", size="md", elem_id="dismiss-welcome")


def _toolbar(named: dict[str, Any]) -> None:
    with gr.Row(elem_classes="bar toolbar", elem_id="toolbar"):
        named["add"] = gr.Button("Add panel", size="sm", elem_id="add-panel")
        named["new"] = gr.Button("New conversation", size="sm", elem_id="new-conversation")
        named["edit"] = gr.Button("Edit last prompt", size="sm", elem_id="edit-last")
        named["blind"] = gr.Checkbox(
            False, label="Blind", container=False, elem_id="blind", elem_classes="inline-check", min_width=80
        )
        named["sets_button"] = gr.Button("Panel sets", size="sm", elem_id="sets-button")
    with gr.Row(visible=False, elem_classes="bar card sets", elem_id="sets") as named["sets"]:
        named["set_name"] = gr.Dropdown(
            [],
            label="Panel set: choose one, or type a name for the panels below",
            allow_custom_value=True,
            elem_id="set-name",
            scale=3,
        )
        named["use_set"] = gr.Button("Open", size="md", elem_id="use-set", scale=0, min_width=90)
        named["save_set"] = gr.Button("Save", size="md", elem_id="save-set", scale=0, min_width=90)
        named["delete_set"] = gr.Button("Delete", size="md", elem_id="delete-set", scale=0, min_width=90)


def _panel(panel: int, models: list[tuple[str, str]]) -> PanelParts:
    with gr.Column(visible=panel == 1, min_width=0, elem_classes="lane", elem_id=f"panel-{panel}") as column:
        _slot(f"head{panel}", "panel-head")
        with gr.Accordion(
            "Engine, device, model", open=False, elem_classes="setup", elem_id=f"setup-{panel}"
        ) as setup:
            engine = gr.Dropdown([], label="Engine", elem_id=f"engine-{panel}", filterable=False)
            with gr.Row(elem_classes="tight"):
                device = gr.Dropdown(
                    [], label="Device", min_width=90, elem_id=f"device-{panel}", filterable=False
                )
                precision = gr.Dropdown(
                    [], label="Precision", min_width=90, elem_id=f"precision-{panel}", filterable=False
                )
            model = gr.Dropdown(
                models,
                label="Model (or a Hugging Face id, or a folder)",
                allow_custom_value=True,
                elem_id=f"model-{panel}",
            )
            why = gr.HTML("", elem_classes="why")
            with gr.Row(elem_classes="bar tight"):
                unload = gr.Button("Unload", size="sm", elem_id=f"unload-{panel}")
                show_log = gr.Button("Log", size="sm", elem_id=f"log-button-{panel}")
                remove = gr.Button("Remove panel", size="sm", elem_id=f"remove-{panel}")
            log = gr.Textbox(
                "",
                label="Worker log",
                lines=8,
                max_lines=12,
                visible=False,
                interactive=False,
                buttons=[],
                elem_id=f"log-{panel}",
            )
        with gr.Column(elem_classes="panel-scroll", elem_id=f"scroll-{panel}"):
            _slot(f"past{panel}", "past")
            _slot(f"now{panel}", "now")
        with gr.Row(elem_classes="bar panel-actions"):
            stop = gr.Button(
                "Stop", size="sm", variant="stop", elem_id=f"stop-{panel}", elem_classes="when-running"
            )
            retry = gr.Button("Retry", size="sm", elem_id=f"retry-{panel}", elem_classes="when-idle")
            carry_on = gr.Button("Continue", size="sm", elem_id=f"continue-{panel}", elem_classes="when-idle")
    return PanelParts(
        column,
        setup,
        engine,
        device,
        precision,
        model,
        why,
        log,
        stop,
        retry,
        carry_on,
        unload,
        show_log,
        remove,
    )


def prompt_row() -> tuple[gr.Textbox, gr.Button, gr.Button]:
    """Where a prompt is written, and the buttons that send it and stop every reply; the script knows their ids."""
    with gr.Row(elem_classes="prompt-row"):
        prompt = gr.Textbox(
            label="Prompt",
            show_label=False,
            container=False,
            lines=1,
            max_lines=10,
            placeholder="Ask every panel the same thing…   Enter sends · Shift+Enter new line · Esc stops",
            elem_id="prompt",
            autofocus=True,
            scale=8,
        )
        send = gr.Button("Send", variant="primary", elem_id="send", scale=0, min_width=96)
        stop_all = gr.Button("Stop all", variant="stop", elem_id="stop-all", scale=0, min_width=96)
    return prompt, send, stop_all


def mode_choice() -> gr.Radio:
    """Whether the panels answer together or in turn."""
    return gr.Radio(
        [("Together", "together"), ("In turn", "in-turn")],
        value="together",
        label="Run the panels",
        container=False,
        elem_id="mode",
        elem_classes="segmented",
    )


def _composer(named: dict[str, Any]) -> None:
    with gr.Column(elem_classes="composer", elem_id="composer"):
        with gr.Column(elem_id="notices"):
            _slot("notices", "notices")
        named["prompt"], named["send"], named["stop_all"] = prompt_row()
        with gr.Row(elem_classes="bar options"):
            named["mode"] = mode_choice()
            named["to_panel"] = gr.Dropdown(
                [("All panels", ALL_PANELS)],
                value=ALL_PANELS,
                label="Send to",
                container=False,
                filterable=False,
                elem_id="send-to",
                min_width=150,
                scale=0,
            )
            named["attach"] = gr.UploadButton(
                "Add a text file", size="sm", file_count="single", elem_id="attach", scale=0, min_width=130
            )
            named["detach"] = gr.Button(
                "Remove file", size="sm", visible=False, elem_id="detach", scale=0, min_width=130
            )
            named["examples"] = [
                gr.Button(
                    label,
                    size="sm",
                    elem_classes="example",
                    elem_id=f"example-{index}",
                    scale=0,
                    min_width=60,
                )
                for index, (label, _) in enumerate(EXAMPLES)
            ]
    named["attachment"] = gr.State(None)


def _bounds(name: str) -> dict[str, float]:
    return {"minimum": BOUNDS[name].low, "maximum": BOUNDS[name].high}


def _settings(named: dict[str, Any]) -> None:
    with gr.Accordion("Generation settings", open=False, elem_id="settings", elem_classes="card settings"):
        named["system_prompt"] = gr.Textbox(
            label="System prompt", lines=2, max_lines=6, placeholder="Empty: none", elem_id="system-prompt"
        )
        with gr.Row(elem_classes="fields"):
            named["max_new_tokens"] = gr.Number(
                256,
                label="Max new tokens",
                info="Per reply",
                precision=0,
                elem_id="max-new-tokens",
                **_bounds("max_new_tokens"),
            )
            named["temperature"] = gr.Number(
                0,
                label="Temperature",
                info="0 is greedy",
                step=0.1,
                **_bounds("temperature"),
            )
            named["top_p"] = gr.Number(1, label="Top-p", info="1 keeps all", step=0.05, **_bounds("top_p"))
            named["top_k"] = gr.Number(0, label="Top-k", info="0 keeps all", precision=0, **_bounds("top_k"))
            named["repetition_penalty"] = gr.Number(
                1, label="Repetition penalty", info="1 is none", step=0.05, **_bounds("repetition_penalty")
            )
            named["seed"] = gr.Textbox(
                "", label="Seed", info="Empty: another each time", max_lines=1, elem_id="seed", min_width=120
            )
        named["thinking"] = gr.Radio(
            [("As the model does", "model"), ("On", "on"), ("Off", "off")],
            value="model",
            label="Thinking before answering",
            info="Where the model's chat template knows a switch; a panel whose template knows none says so",
            elem_id="thinking",
        )
        named["ignored"] = gr.HTML("", elem_id="ignored")


def _strip() -> None:
    with gr.Accordion("This computer, live", open=True, elem_id="live-strip", elem_classes="card strip-card"):
        _slot("strip")


def _after_turn(named: dict[str, Any]) -> None:
    with gr.Column(elem_id="summary"):
        _slot("summary")
    named["vote"] = gr.Radio(
        [], label="Which reply is better?", visible=False, elem_id="vote", elem_classes="card vote"
    )
    with gr.Accordion(
        "Compare two replies word by word", open=False, elem_id="diff", elem_classes="card diff-card"
    ):
        with gr.Row():
            named["diff_one"] = gr.Dropdown([], label="This reply", elem_id="diff-one", filterable=False)
            named["diff_other"] = gr.Dropdown(
                [], label="against this one", elem_id="diff-other", filterable=False
            )
        named["diff_text"] = gr.HTML("", elem_id="diff-text")


def _slot(name: str, classes: str = "") -> gr.HTML:
    """A place that page.js draws into; Gradio itself never changes it."""
    return gr.HTML(f'<div class="slot" data-slot="{name}"></div>', elem_classes=classes, js_on_load=None)


def _hidden(named: dict[str, Any], changes: Callable[..., Any]) -> None:
    with gr.Column(elem_id="announce"):
        _slot("announce")
    named["conversation"] = gr.Textbox("", label="Conversation id", visible="hidden")
    named["live"] = gr.HTML(
        "",
        html_template="",
        js_on_load=ASK_ON_LOAD,
        server_functions=[changes],
        elem_id="live",
        container=False,
    )
