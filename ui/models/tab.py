"""The Models tab: what is on this computer, what getting another model would cost, getting it, throwing it away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from engines import ENGINES, spec_by_name
from engines.engine import EngineError, ModelError
from engines.models.inventory import Installed
from engines.models.library import ModelLibrary
from engines.models.model_names import entered
from engines.models.plan import Plan
from engines.models.trust import code_revision, python_files
from engines.protocol import EngineSpec, ProtocolError, Target
from ui import format as show
from ui.models.background import ModelWork, WorkView, format_choices

_LEFT = "text-align: left !important"
_KINDS = {
    "bundled": "comes with the app",
    "downloaded": "downloaded, original weights",
    "converted": "converted here",
    "ready-made": "downloaded, ready-made",
    "imported": "your folder",
}
_TRUST = (
    "<p>Some models bring Python code of their own. If you allow it, that code runs on this computer with your "
    "rights: it can read your files and use the network. Allow it only for makers you trust. No model in the list "
    "needs it. Your decision is kept for this model as it is now; if its maker changes it, you are asked again.</p>"
)


def build(library: ModelLibrary, manager: Any) -> None:
    """Lay out and wire the tab; call inside the Blocks."""
    work = ModelWork(library)
    formats = format_choices(ENGINES)

    gr.HTML("<h2>On this computer</h2>")
    table = gr.HTML(elem_id="models-table")
    with gr.Row(elem_classes="bar"):
        entry = gr.Dropdown([], label="Entry", elem_id="models-entry", scale=3, filterable=False)
        remove = gr.Button("Remove…", size="md", elem_id="models-remove", scale=0, min_width=110)
        refresh = gr.Button("Refresh", size="md", elem_id="models-refresh", scale=0, min_width=90)
    with gr.Row(visible=False, elem_classes="bar") as confirm:
        question = gr.HTML()
        yes = gr.Button(
            "Yes, remove", variant="stop", size="md", elem_id="models-remove-yes", scale=0, min_width=120
        )
        no = gr.Button("Keep", size="md", elem_id="models-remove-no", scale=0, min_width=80)

    gr.HTML("<h2>Get a model</h2>")
    with gr.Row(elem_classes="bar"):
        model = gr.Dropdown(
            [],
            label="Model: choose one, or type a Hugging Face id (org/name) or the path of a folder",
            allow_custom_value=True,
            elem_id="models-model",
        )
    wanted = gr.CheckboxGroup(
        formats, value=[formats[0][1]] if formats else [], label="For", elem_id="models-for"
    )
    override = gr.Checkbox(False, label="Go on although it does not seem to fit", elem_id="models-override")
    with gr.Accordion("Models that bring code of their own", open=False):
        gr.HTML(_TRUST)
        trust_text = gr.HTML(elem_id="models-trust-view")
        with gr.Row(elem_classes="bar"):
            trust_ask = gr.Button(
                "Let this model's code run…", size="md", elem_id="models-trust", scale=0, min_width=200
            )
            trust_no = gr.Button(
                "Allow it no longer", size="md", elem_id="models-trust-no", scale=0, min_width=150
            )
            trust_yes = gr.Button(
                "Yes, run its code",
                variant="stop",
                size="md",
                visible=False,
                elem_id="models-trust-yes",
                scale=0,
                min_width=150,
            )
        trust_question = gr.State(None)  # stays on the server
    with gr.Row(elem_classes="bar"):
        plan_button = gr.Button("Show the plan", size="md", elem_id="models-plan", scale=0, min_width=130)
        get = gr.Button(
            "Get ready", variant="primary", size="md", elem_id="models-get", scale=0, min_width=110
        )
        stop = gr.Button("Stop", size="md", elem_id="models-stop", scale=0, min_width=80, interactive=False)
    plan_view = gr.HTML(elem_id="models-plan-view")
    status = gr.HTML(elem_id="models-status")
    with gr.Accordion("Log of the last download or conversion", open=False):
        log = gr.Textbox(
            label="Log", lines=12, max_lines=12, interactive=False, elem_id="models-log", buttons=[]
        )
        show_log = gr.Button("Show the log", size="sm", elem_id="models-show-log")

    gr.HTML(
        "<h2>Import a folder</h2><p>An OpenVINO IR, an ONNX Runtime GenAI folder, or original weights "
        "(safetensors). It stays where it is.</p>"
    )
    with gr.Row(elem_classes="bar"):
        folder = gr.Textbox(label="Folder on this computer", elem_id="models-folder", max_lines=1)
        take = gr.Button("Import", size="md", elem_id="models-import", scale=0, min_width=100)
    imported = gr.HTML()
    timer = gr.Timer(0.5)  # fills the lists once the tab is shown, then ticks only while something is at work
    seen = gr.State(-1)

    def overview():
        entries = library.installed()
        removable = [(_entry_label(e), e.id) for e in entries if e.kind != "bundled"]
        first = removable[0][1] if removable else None
        models = [
            (f"{m.title} — {m.name}" + ("" if m.is_here else " (not here)"), m.name) for m in library.models()
        ]
        return _table(entries), gr.update(choices=removable, value=first), gr.update(choices=models)

    trust = library.trust

    def trusted(name) -> bool:
        return trust.allows(name or "", _revision(library, name))

    def ask_trust(name):
        name = (name or "").strip()
        revision, files = _revision(library, name), _own_code(library, name)
        if revision is None:
            text = "Get the model first: its code can be allowed once it is here and can be read."
            return f"<p>{text}</p>", gr.update(visible=False), None
        question = trust.ask(name, revision, files)
        which = ", ".join(files) or "none in its folder; what its settings name elsewhere"
        return (
            f"<p>Let the Python code of <strong>{show.text(name)}</strong> (as it is now: "
            f"{show.text(revision[:12])}) run on this computer? Files: {show.text(which)}.</p>",
            gr.update(visible=True),
            question.token,
        )

    def confirm_trust(token):
        question = trust.confirm(token)
        text = (
            f"The code of {show.text(question.model)} may run on this computer."
            if question
            else "That question was too long ago; ask again."
        )
        return f"<p>{text}</p>", gr.update(visible=False), None

    def withdraw_trust(name):
        gone = trust.withdraw((name or "").strip())
        text = "Its code may run no longer." if gone else "Its code was not allowed to run."
        return f"<p>{text}</p>", gr.update(visible=False), None

    def plan_it(name, spellings):
        try:
            targets = _targets(name, spellings)
        except (EngineError, ProtocolError) as error:
            return _failure(error)
        may_run = trusted(name)
        plans = [library.plan(target, spec, trust_remote_code=may_run) for target, spec in targets]
        return "".join(_plan(plan) for plan in plans)

    def start(name, spellings, forced):
        try:
            targets = _targets(name, spellings)
        except (EngineError, ProtocolError) as error:
            return _failure(error), gr.update(), gr.update()
        if not work.start(targets, trust=trusted(name), override=bool(forced)):
            return _failure(ModelError("Something else is at work.", "Wait for it, or stop it.")), *_running(
                True
            )
        return _status(work.view()), *_running(True)

    def tick(last):
        view = work.view()
        changed = overview() if view.version != last else (gr.update(), gr.update(), gr.update())
        return (_status(view), *_running(view.running), view.version, *changed)

    def ask(entry_id):
        matching = [e for e in library.inventory.matching(entry_id or "") if e.id == entry_id]
        if not matching:
            return gr.update(visible=False), ""
        users = _users(manager, matching[0].model)
        in_use = f" It is in use by {', '.join(map(str, users))}, which will be unloaded." if users else ""
        if matching[0].kind == "imported":
            return gr.update(
                visible=True
            ), f"<p>Forget {show.text(matching[0].model)}? The folder itself stays.</p>"
        return gr.update(visible=True), (
            f"<p>Remove {show.text(_entry_label(matching[0]))}? "
            f"{show.size(matching[0].freed_bytes)} become free.{show.text(in_use)}</p>"
        )

    def remove_it(entry_id):
        try:
            for found in library.inventory.matching(entry_id or ""):
                for target in _users(manager, found.model):
                    manager.unload(target)
            text = f"<p>Removed; {show.size(library.remove(entry_id or ''))} are free again.</p>"
        except EngineError as error:
            text = _failure(error)
        return (gr.update(visible=False), text, *overview())

    def import_it(path):
        try:
            if not (path or "").strip():
                raise ModelError("There is no path.", "Write the path of a model folder on this computer.")
            found = library.import_folder(Path(entered(path)))
            text = f"<p>Imported {show.text(found.path)}: {show.text(found.format)}, {show.size(found.bytes)}.</p>"
        except EngineError as error:
            text = _failure(error)
        return (text, *overview())

    lists = [table, entry, model]
    watching = [status, stop, timer]
    quiet = {"show_progress": "hidden"}
    refresh.click(overview, None, lists, **quiet)
    plan_button.click(plan_it, [model, wanted], plan_view)
    get.click(start, [model, wanted, override], watching, **quiet)
    trusting = [trust_text, trust_yes, trust_question]
    trust_ask.click(ask_trust, model, trusting, **quiet)
    trust_yes.click(confirm_trust, trust_question, trusting, **quiet)
    trust_no.click(withdraw_trust, model, trusting, **quiet)
    stop.click(work.stop, None, None, queue=False)
    timer.tick(tick, seen, [*watching, seen, *lists], **quiet)
    remove.click(ask, entry, [confirm, question], **quiet)
    yes.click(remove_it, entry, [confirm, imported, *lists], **quiet)
    no.click(lambda: gr.update(visible=False), None, confirm, **quiet)
    take.click(import_it, folder, [imported, *lists], **quiet)
    show_log.click(library.latest_log, None, log, **quiet)


def _running(is_running: bool) -> tuple[Any, Any]:
    """Updates of the Stop button and the timer."""
    return gr.update(interactive=is_running), gr.Timer(active=is_running)


def _targets(name: str | None, spellings: list[str] | None) -> list[tuple[Target, EngineSpec]]:
    """Raises ModelError or ProtocolError when the choice makes no sense."""
    if not (name or "").strip():
        raise ModelError("No model is chosen.", "Choose one from the list, or type its name.")
    if not spellings:
        raise ModelError("It is not said what the model is for.", "Tick at least one format.")
    targets = []
    for spelling in spellings:
        target = Target.parse(spelling, entered(name or ""))
        spec = spec_by_name(target.engine)
        if spec is None:
            raise ModelError(f"There is no engine “{target.engine}”.")
        targets.append((target, spec))
    return targets


def _here(library: ModelLibrary, name: str | None) -> Installed | None:
    """The model's own files, as they came from its maker."""
    kinds = ("downloaded", "imported", "ready-made")
    found = [e for e in library.installed() if e.model == (name or "").strip() and e.kind in kinds]
    return found[0] if found else None


def _revision(library: ModelLibrary, name: str | None) -> str | None:
    """What the owner's decision about a model's code is tied to: the commit, or a hash of the code itself."""
    found = _here(library, name)
    return None if found is None else code_revision(Path(found.path), found.revision)


def _own_code(library: ModelLibrary, name: str | None) -> tuple[str, ...]:
    found = _here(library, name)
    return python_files(Path(found.path)) if found else ()


def _users(manager: Any, model: str) -> list[Target]:
    """Loaded targets of a model."""
    return [
        state.target
        for state in manager.states()
        if state.target.model == model and state.phase in ("ready", "busy", "loading")
    ]


# --- HTML --------------------------------------------------------------------------------------------------


def _entry_label(entry: Installed) -> str:
    parts = [entry.model, entry.format, entry.precision, entry.device and f"for {entry.device}"]
    return " · ".join(part for part in parts if part)


def _table(entries: tuple[Installed, ...]) -> str:
    heads = ("Model", "Format", "Precision", "For", "What", "Size", "Where")
    rows = "".join(_row(entry) for entry in entries)
    total = show.size(sum(entry.bytes for entry in entries))
    head = "".join(f'<th scope="col" style="{_LEFT if name != "Size" else ""}">{name}</th>' for name in heads)
    return (
        '<div class="md-table" tabindex="0" role="group" aria-label="Models on this computer">'
        '<table class="results"><thead><tr>'
        f"{head}</tr></thead><tbody>{rows}</tbody></table></div><p>Together {total}.</p>"
    )


def _row(entry: Installed) -> str:
    cells = (entry.format, entry.precision, entry.device, _KINDS.get(entry.kind, entry.kind))
    problem = f'<br><span class="note warn">{show.text(entry.problem)}</span>' if entry.problem else ""
    middle = "".join(f'<td style="{_LEFT}">{show.text(cell)}</td>' for cell in cells)
    return (
        f'<tr><th scope="row">{show.text(entry.model)}{problem}</th>{middle}'
        f'<td>{show.size(entry.bytes)}</td><td style="{_LEFT}">{show.text(entry.path)}</td></tr>'
    )


def _plan(plan: Plan) -> str:
    lines = "".join(f"<p>{show.text(line)}</p>" for line in plan.lines())
    look = 'class="failure"' if plan.refusal else 'class="card" style="padding: 8px 12px"'
    return f"<div {look}><p><strong>{show.text(plan.target)}</strong></p>{lines}</div>"


def _status(view: WorkView) -> str:
    done = "".join(f"<p>Ready: {show.text(target)}</p>" for target in view.done)
    if view.problem:
        return done + _failure(ModelError(view.problem, view.remedy))
    if not view.running:
        return done
    progress = view.progress
    text = progress.text if progress else "Starting"
    share = progress.fraction if progress else None
    bar = (
        f'<progress max="1" value="{share:.3f}" aria-label="Progress"></progress> '
        if share is not None
        else ""
    )
    percent = f" · {show.percent(share)}" if share is not None else ""
    return (
        f"{done}<p>{bar}<strong>{show.text(view.target)}</strong>: {show.text(text)}{percent} · "
        f"{show.elapsed(view.elapsed_s)}</p>"
    )


def _failure(error: Exception) -> str:
    remedy = getattr(error, "remedy", None)
    more = f"<p>{show.text(remedy)}</p>" if remedy else ""
    return f'<div class="failure" role="alert"><p><strong>{show.text(error)}</strong></p>{more}</div>'
