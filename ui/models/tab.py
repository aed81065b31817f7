"""The Models tab: models times the backends of this PC, one plan and one progress for all, what is here, imports.

Components first, then what they do, then how they are wired.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr

from engines import ENGINES, spec_by_name
from engines.engine import EngineError, ModelError
from engines.models.inventory import Installed
from engines.models.library import ModelLibrary
from engines.models.model_names import entered
from engines.models.overview import overview
from engines.models.together import Backend, as_stated, backends, plan_together
from engines.models.trust import code_revision, python_files
from engines.protocol import ProtocolError, Target
from ui import format as show
from ui.models import html
from ui.models.background import ModelWork, format_choices
from ui.tabs import on_show

_TRUST = (
    "<p>Some models bring Python code of their own. If you allow it, that code runs on this computer with your "
    "rights: it can read your files and use the network. Allow it only for makers you trust. No model in the list "
    "needs it. Your decision is kept for this model as it is now; if its maker changes it, you are asked again.</p>"
)
_ALL = "all"
_QUIET: dict[str, Any] = {"show_progress": "hidden"}


def build(library: ModelLibrary, manager: Any, work: ModelWork | None = None) -> None:
    """Lay out and wire the tab; call inside the Blocks. `work`: what the other tabs watch, too."""
    ModelsTab(library, manager, work or ModelWork(library))


# --- components --------------------------------------------------------------------------------------------


def _button(text: str, name: str, width: int, **more: Any) -> gr.Button:
    return gr.Button(text, size="md", elem_id=f"models-{name}", scale=0, min_width=width, **more)


def _getting() -> SimpleNamespace:
    """A model for all backends: the choice, the plan, the progress, and the table."""
    parts = SimpleNamespace()
    gr.HTML("<h2>Get a model</h2>", js_on_load=None)
    with gr.Row(elem_classes="bar"):
        parts.model = gr.Dropdown(
            [],
            label="Model: choose one, or type a Hugging Face id (org/name) or the path of a folder",
            allow_custom_value=True,
            elem_id="models-model",
            scale=3,
        )
        parts.get_all = _button("Get for all my backends", "get-all", 200, variant="primary")
        parts.plan_all = _button("Show the plan", "plan", 130)
        parts.stop = _button("Stop", "stop", 80, interactive=False)
    parts.plan_view = gr.HTML(elem_id="models-plan-view", js_on_load=None)
    parts.status = gr.HTML(elem_id="models-status", js_on_load=None)
    parts.grid = gr.HTML("<p>Looking at what is here …</p>", elem_id="models-grid", js_on_load=html.PICK)
    return parts


def _one_format() -> SimpleNamespace:
    parts, formats = SimpleNamespace(), format_choices(ENGINES)
    with gr.Accordion("Only some formats, or although it does not seem to fit", open=False):
        parts.wanted = gr.CheckboxGroup(
            formats, value=[formats[0][1]] if formats else [], label="For", elem_id="models-for"
        )
        parts.override = gr.Checkbox(
            False, label="Go on although it does not seem to fit", elem_id="models-override"
        )
        parts.get = _button("Get ready", "get", 110)
    with gr.Accordion("Models that bring code of their own", open=False):
        gr.HTML(_TRUST, js_on_load=None)
        parts.trust_text = gr.HTML(elem_id="models-trust-view", js_on_load=None)
        with gr.Row(elem_classes="bar"):
            parts.trust_ask = _button("Let this model's code run…", "trust", 200)
            parts.trust_no = _button("Allow it no longer", "trust-no", 150)
            parts.trust_yes = _button("Yes, run its code", "trust-yes", 150, variant="stop", visible=False)
        parts.trust_question = gr.State(None)  # stays on the server
    with gr.Accordion("Log of the last download or conversion", open=False):
        parts.log = gr.Textbox(
            label="Log", lines=12, max_lines=12, interactive=False, elem_id="models-log", buttons=[]
        )
        parts.show_log = gr.Button("Show the log", size="sm", elem_id="models-show-log")
    return parts


def _here() -> SimpleNamespace:
    parts = SimpleNamespace()
    gr.HTML("<h2>On this computer</h2>", js_on_load=None)
    parts.table = gr.HTML(elem_id="models-table", js_on_load=None)
    with gr.Row(elem_classes="bar"):
        parts.entry = gr.Dropdown([], label="Entry", elem_id="models-entry", scale=3, filterable=False)
        parts.remove = _button("Remove…", "remove", 110)
        parts.refresh = _button("Refresh", "refresh", 90)
    with gr.Row(visible=False, elem_classes="bar") as parts.confirm:
        parts.question = gr.HTML(js_on_load=None)
        parts.yes = _button("Yes, remove", "remove-yes", 120, variant="stop")
        parts.no = _button("Keep", "remove-no", 80)
    gr.HTML(
        "<h2>Import a folder</h2><p>An OpenVINO IR, an ONNX Runtime GenAI folder, or original weights "
        "(safetensors). It stays where it is.</p>",
        js_on_load=None,
    )
    with gr.Row(elem_classes="bar"):
        parts.folder = gr.Textbox(label="Folder on this computer", elem_id="models-folder", max_lines=1)
        parts.take = _button("Import", "import", 100)
    parts.imported = gr.HTML(js_on_load=None)
    return parts


# --- what they do ------------------------------------------------------------------------------------------


class ModelsTab:
    """Components, handlers and wiring of the tab."""

    def __init__(self, library: ModelLibrary, manager: Any, work: ModelWork):
        self._library, self._manager, self._work = library, manager, work
        self._get, self._one, self._here = _getting(), _one_format(), _here()
        self._timer = gr.Timer(0.5)  # fills the lists at first, then ticks only while something is at work
        self._seen = gr.State((-1, 0))
        self._wire()

    def _backends(self, model: str) -> tuple[Backend, ...]:
        """Every backend that can run here; asks the engines if nobody has yet."""
        specs = tuple(self._manager.specs.values())
        return backends(model, specs, self._manager.availability())

    def _lists(self) -> list[Any]:
        """Grid, list of what is here, its menu, and the menu of models."""
        entries = self._library.installed()
        removable = [(html.entry_label(e), e.id) for e in entries if e.kind != "bundled"]
        models = [
            (f"{m.title} — {m.name}" + ("" if m.is_here else " (not here)"), m.name)
            for m in self._library.models()
        ]
        rows = overview(self._library, self._backends("demo"))
        return [
            html.grid(rows, tuple(self._manager.specs.values())),
            html.installed(entries),
            gr.update(choices=removable, value=removable[0][1] if removable else None),
            gr.update(choices=models),
        ]

    def _trusted(self, name: str | None) -> bool:
        return self._library.trust.allows(name or "", self._revision(name))

    def _wanted(self, name: str | None, spellings: list[str] | str | None) -> tuple[Backend, ...]:
        """Raises ModelError or ProtocolError when the choice makes no sense."""
        if not (name or "").strip():
            raise ModelError("No model is chosen.", "Choose one from the list, or type its name.")
        model = entered(str(name))
        if spellings == _ALL:
            found = as_stated(self._library, self._backends(model))
            if not found:
                raise ModelError("No engine can run here yet.", "The System tab says what to install.")
            return found
        if not spellings:
            raise ModelError("It is not said what the model is for.", "Tick at least one format.")
        return tuple(_backend(spelling, model) for spelling in spellings)

    def _plan_all(self, name: str | None) -> str:
        try:
            wanted = self._wanted(name, _ALL)
        except (EngineError, ProtocolError) as error:
            return html.failure(str(error), getattr(error, "remedy", None))
        return html.joint_plan(plan_together(self._library, wanted, trust_remote_code=self._trusted(name)))

    def _get_all(self, name: str | None) -> list[Any]:
        return self._start(name, _ALL, False)

    def _get_some(self, name: str | None, spellings: list[str] | None, forced: bool) -> list[Any]:
        return self._start(name, spellings, bool(forced))

    def _start(self, name: str | None, spellings: list[str] | str | None, forced: bool) -> list[Any]:
        try:
            wanted = self._wanted(name, spellings)
        except (EngineError, ProtocolError) as error:
            return [html.failure(str(error), getattr(error, "remedy", None)), gr.skip(), gr.skip()]
        if not self._work.start(wanted, trust=self._trusted(name), override=forced):
            return [html.failure("Something else is at work.", "Wait for it, or stop it."), *_running(True)]
        return [html.progress(self._work.view()), *_running(True)]

    def _pick(self, event: gr.EventData) -> list[Any]:
        """A click in the table: on a model's name, choose it; on a cell's button, get it."""
        model, on = str(event._data.get("model") or ""), str(event._data.get("on") or "")
        if not on:
            return [gr.update(value=model), self._plan_all(model), gr.skip(), gr.skip(), gr.skip()]
        return [gr.update(value=model), "", *self._start(model, [on], False)]

    def _tick(self, seen: tuple[int, int]) -> list[Any]:
        """`seen`: the marks of the work and of what is here that the lists were last filled at."""
        view = self._work.view()
        now = (view.version, seen[1] if view.running else self._library.stamp())
        lists = self._lists() if now != seen else [gr.skip()] * 4
        return [html.progress(view), *_running(view.running), now, *lists]

    def _ask_trust(self, name: str | None) -> list[Any]:
        name = (name or "").strip()
        revision, files = self._revision(name), self._own_code(name)
        if revision is None:
            text = "Get the model first: its code can be allowed once it is here and can be read."
            return [f"<p>{text}</p>", gr.update(visible=False), None]
        question = self._library.trust.ask(name, revision, files)
        which = ", ".join(files) or "none in its folder; what its settings name elsewhere"
        text = (
            f"<p>Let the Python code of <strong>{show.text(name)}</strong> (as it is now: "
            f"{show.text(revision[:12])}) run on this computer? Files: {show.text(which)}.</p>"
        )
        return [text, gr.update(visible=True), question.token]

    def _confirm_trust(self, token: str | None) -> list[Any]:
        question = self._library.trust.confirm(token)
        text = (
            f"The code of {show.text(question.model)} may run on this computer."
            if question
            else "That question was too long ago; ask again."
        )
        return [f"<p>{text}</p>", gr.update(visible=False), None]

    def _withdraw_trust(self, name: str | None) -> list[Any]:
        gone = self._library.trust.withdraw((name or "").strip())
        text = "Its code may run no longer." if gone else "Its code was not allowed to run."
        return [f"<p>{text}</p>", gr.update(visible=False), None]

    def _found(self, name: str | None) -> Installed | None:
        """The model's own files, as they came from its maker."""
        kinds = ("downloaded", "imported", "ready-made")
        found = [e for e in self._library.installed() if e.model == (name or "").strip() and e.kind in kinds]
        return found[0] if found else None

    def _revision(self, name: str | None) -> str | None:
        """What the owner's decision about a model's code is tied to: the commit, or a hash of the code itself."""
        found = self._found(name)
        return None if found is None else code_revision(Path(found.path), found.revision)

    def _own_code(self, name: str | None) -> tuple[str, ...]:
        found = self._found(name)
        return python_files(Path(found.path)) if found else ()

    def _users(self, model: str) -> list[Target]:
        """Loaded targets of a model."""
        busy = ("ready", "busy", "loading")
        return [s.target for s in self._manager.states() if s.target.model == model and s.phase in busy]

    def _ask_remove(self, entry_id: str | None) -> list[Any]:
        matching = [e for e in self._library.inventory.matching(entry_id or "") if e.id == entry_id]
        if not matching:
            return [gr.update(visible=False), ""]
        entry = matching[0]
        users = self._users(entry.model)
        in_use = f" It is in use by {', '.join(map(str, users))}, which will be unloaded." if users else ""
        if entry.kind == "imported":
            return [
                gr.update(visible=True),
                f"<p>Forget {show.text(entry.model)}? The folder itself stays.</p>",
            ]
        text = (
            f"<p>Remove {show.text(html.entry_label(entry))}? "
            f"{show.size(entry.freed_bytes)} become free.{show.text(in_use)}</p>"
        )
        return [gr.update(visible=True), text]

    def _remove(self, entry_id: str | None) -> list[Any]:
        try:
            for found in self._library.inventory.matching(entry_id or ""):
                for target in self._users(found.model):
                    self._manager.unload(target)
            text = f"<p>Removed; {show.size(self._library.remove(entry_id or ''))} are free again.</p>"
        except EngineError as error:
            text = html.failure(str(error), error.remedy)
        return [gr.update(visible=False), text, *self._lists()]

    def _keep(self) -> Any:
        return gr.update(visible=False)

    def _import(self, path: str | None) -> list[Any]:
        try:
            if not (path or "").strip():
                raise ModelError("There is no path.", "Write the path of a model folder on this computer.")
            found = self._library.import_folder(Path(entered(str(path))))
            text = f"<p>Imported {show.text(found.path)}: {show.text(found.format)}, {show.size(found.bytes)}.</p>"
        except EngineError as error:
            text = html.failure(str(error), error.remedy)
        return [text, *self._lists()]

    # --- wiring --------------------------------------------------------------------------------------------

    def _wire(self) -> None:
        get, one, here = self._get, self._one, self._here
        lists = [get.grid, here.table, here.entry, get.model]
        watching = [get.status, get.stop, self._timer]
        get.plan_all.click(self._plan_all, get.model, get.plan_view)
        get.get_all.click(self._get_all, get.model, watching, **_QUIET)
        get.grid.click(self._pick, None, [get.model, get.plan_view, *watching], **_QUIET)
        get.stop.click(self._work.stop, None, None, queue=False)
        one.get.click(self._get_some, [get.model, one.wanted, one.override], watching, **_QUIET)
        trusting = [one.trust_text, one.trust_yes, one.trust_question]
        one.trust_ask.click(self._ask_trust, get.model, trusting, **_QUIET)
        one.trust_yes.click(self._confirm_trust, one.trust_question, trusting, **_QUIET)
        one.trust_no.click(self._withdraw_trust, get.model, trusting, **_QUIET)
        one.show_log.click(self._library.latest_log, None, one.log, **_QUIET)
        ticked = [*watching, self._seen, *lists]
        self._timer.tick(self._tick, self._seen, ticked, **_QUIET)
        # What was begun elsewhere meanwhile (the offer on Compare, another window) is shown and can be stopped here.
        on_show(lambda listen: listen(self._tick, self._seen, ticked, **_QUIET))
        here.refresh.click(self._lists, None, lists, **_QUIET)
        here.remove.click(self._ask_remove, here.entry, [here.confirm, here.question], **_QUIET)
        here.yes.click(self._remove, here.entry, [here.confirm, here.imported, *lists], **_QUIET)
        here.no.click(self._keep, None, here.confirm, **_QUIET)
        here.take.click(self._import, here.folder, [here.imported, *lists], **_QUIET)


def _running(is_running: bool) -> tuple[Any, Any]:
    """Updates of the Stop button and the timer."""
    return gr.update(interactive=is_running), gr.Timer(active=is_running)


def _backend(spelling: str, model: str) -> Backend:
    target = Target.parse(spelling, model)
    spec = spec_by_name(target.engine)
    if spec is None:
        raise ModelError(f"There is no engine “{target.engine}”.")
    return Backend(target, spec)
