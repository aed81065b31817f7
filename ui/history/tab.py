"""The History tab: find a conversation, read it exactly as it was, continue it, take it away, delete it.

A list on the left (newest first, search as you type, filters), the open conversation on the right. Components come
first, then plain functions, then the wiring. What goes wrong with the file is said in one sentence above the list.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr

from storage import housekeeping, queries
from storage.codec import readable
from storage.exchange import exports, imports
from storage.exchange.documents import file_name
from storage.records import Filter
from storage.store import Store, StoreError
from ui import format as fmt
from ui.history import conversation_html as view
from ui.tabs import on_show

ANY = "Any"
STATUSES = [
    (ANY, ""),
    ("Finished", "finished"),
    ("Stopped", "stopped"),
    ("Failed", "failed"),
    ("Interrupted", "interrupted"),
]
VOTES = [
    (ANY, ""),
    ("Voted on", "voted"),
    ("Won by what is chosen here", "won"),
    ("A tie", "tie"),
    ("None was good", "none"),
    ("Not voted on", "missing"),
]
FORMATS = [
    ("CSV, for spreadsheets", "csv"),
    ("JSON Lines, complete", "jsonl"),
    ("Parquet, for analysis", "parquet"),
    ("Whole database (SQLite)", "db"),
]
RETENTION = [("For ever", 0), ("One year", 365), ("90 days", 90), ("30 days", 30), ("7 days", 7)]
_CHOICES = ("engine", "device", "precision", "model", "machine")
_QUIET = {"show_progress": "hidden"}

# The clicked conversation is marked here and now; the server only sends its content.
_LIST_JS = """
element.addEventListener('click', (event) => {
  const item = event.target.closest('[data-id]');
  if (!item) return;
  element.querySelectorAll('[aria-current]').forEach((other) => other.removeAttribute('aria-current'));
  item.setAttribute('aria-current', 'true');
  trigger('click', {id: item.dataset.id});
});
"""
# On a narrow screen the conversation opens below the list.
_TO_DETAIL_JS = """
() => {
  const detail = document.getElementById('history-detail');
  if (detail && window.innerWidth <= 760) detail.scrollIntoView({block: 'start'});
}
"""
# The person sees at once that something happens; the conversation arrives there a moment later.
_TO_COMPARE_JS = """
() => {
  const tabs = [...document.querySelectorAll('[role=tab]')];
  tabs.find((tab) => tab.textContent.trim() === 'Compare')?.click();
}
"""
_DOWNLOAD_JS = """
() => {
  let tries = 30;
  const press = () => {
    const link = document.querySelector('#%s a[href], a#%s[href]') || document.querySelector('#%s');
    if (link && link.offsetParent !== null) link.click();
    else if (tries-- > 0) setTimeout(press, 100);
  };
  setTimeout(press, 50);
}
"""


@dataclass
class History:
    """What the page needs of this tab."""

    open_in_compare: gr.State
    """The id of the conversation to continue on the Compare tab; changes when the person asks for it."""


def build(store: Store) -> History:
    """Build the tab inside a Blocks (and, as a rule, a Tab, which then refreshes it when it is opened)."""
    return _Tab(store).history


def told(function: Callable[..., Any]) -> Callable[..., Any]:
    """A handler whose StoreError reaches the person as a sentence and changes nothing else."""

    @wraps(function)
    def handler(*values: Any) -> Any:
        try:
            return function(*values)
        except StoreError as error:
            raise gr.Error(fmt.text(error), title="History", print_exception=False) from error

    return handler


class _Tab:
    def __init__(self, store: Store):
        self.store = store
        self._exports = exports.own_folder()
        self.offset = gr.State(0)
        self.selected = gr.State(None)
        self.deleted = gr.State(None)
        self.shown_turns = gr.State(view.SHOWN_TURNS)
        self.notice = gr.HTML("", elem_id="history-notice", js_on_load=None)
        with gr.Row(visible=False, elem_classes="hist-undo") as self.undo_row:
            self.undo_text = gr.HTML("", js_on_load=None)
            self.undo = gr.Button("Undo", size="sm")
        with gr.Row(elem_classes="hist-cols"):
            with gr.Column(scale=2, min_width=280, elem_classes="hist-side"):
                self._build_list()
            with gr.Column(scale=5, min_width=320, elem_id="history-detail", elem_classes="hist-detail"):
                self._build_detail()
        self._build_exchange()
        self._build_privacy()
        self.history = History(gr.State(None))
        self._wire()

    # --- components ------------------------------------------------------------------------------------

    def _build_list(self) -> None:
        self.query = gr.Textbox(
            label="Search prompts and replies",
            placeholder="Words, or their beginnings",
            elem_id="history-search",
        )
        with gr.Accordion("Filters", open=False, elem_classes="hist-filters"):
            menus = {name: (name.capitalize(), [(ANY, "")]) for name in _CHOICES}
            menus |= {"status": ("Outcome", STATUSES), "vote": ("Vote", VOTES)}
            with gr.Row():
                self.choices = {
                    name: gr.Dropdown(choices, value="", label=label, filterable=False, min_width=130)
                    for name, (label, choices) in menus.items()
                }
            with gr.Row():
                self.since = gr.Textbox(label="From day", placeholder="2026-01-31", min_width=110)
                self.until = gr.Textbox(label="To day", placeholder="2026-12-31", min_width=110)
            self.clear = gr.Button("Clear filters", size="sm")
        self.list = gr.HTML("", elem_id="history-list", js_on_load=_LIST_JS)
        with gr.Row(elem_classes="hist-pager"):
            self.newer = gr.Button("Newer", size="sm", interactive=False)
            self.position = gr.HTML("", js_on_load=None, elem_id="history-position")
            self.older = gr.Button("Older", size="sm", interactive=False)

    def _build_detail(self) -> None:
        self.nothing = gr.HTML('<p class="hist-empty">Choose a conversation to read it.</p>', js_on_load=None)
        with gr.Column(visible=False) as self.actions:
            with gr.Row(elem_classes="hist-actions"):
                self.go_on = gr.Button("Continue in Compare", variant="primary", size="sm")
                self.pin = gr.Button("Pin", size="sm")
                self.markdown = gr.Button("Save as Markdown", size="sm")
                self.json = gr.Button("Save as JSON", size="sm")
                self.delete = gr.Button("Delete", size="sm", elem_classes="hist-danger")
                self.download = gr.DownloadButton(
                    "Download", size="sm", visible=False, elem_id="history-download"
                )
            with gr.Row(elem_classes="hist-actions"):
                self.title = gr.Textbox(label="Title", max_lines=1, elem_id="history-title")
                self.rename = gr.Button("Rename", size="sm")
        self.detail = gr.HTML("", elem_id="history-conversation", js_on_load=None)
        self.all_turns = gr.Button("Show all turns", size="sm", visible=False)

    def _build_exchange(self) -> None:
        with gr.Accordion("Export and import", open=False):
            gr.Markdown(
                "Exports the runs that the search and filters above find. JSON Lines and databases can be brought in "
                "again on any machine; nothing is doubled, and what comes keeps the name of its machine."
            )
            with gr.Row(elem_classes="hist-actions"):
                self.format = gr.Dropdown(FORMATS, value="csv", label="Format", filterable=False)
                self.export = gr.Button("Export", size="sm")
                self.exported = gr.DownloadButton(
                    "Download", size="sm", visible=False, elem_id="history-export"
                )
            with gr.Row(elem_classes="hist-actions"):
                self.machine_name = gr.Textbox(
                    label="Machine name for an import", placeholder="its own name", max_lines=1
                )
                self.bring_in = gr.UploadButton("Import a file", size="sm", file_count="single")

    def _build_privacy(self) -> None:
        with gr.Accordion("Privacy", open=False):
            gr.Markdown(
                f"The history is one file, `{self.store.path}`, readable only by you. Nothing leaves this PC."
            )
            self.keep_text = gr.Checkbox(True, label="Keep prompts and replies (off: numbers only)")
            self.retention = gr.Dropdown(RETENTION, value=0, label="Keep conversations", filterable=False)
            with gr.Row(elem_classes="hist-actions"):
                self.ask_texts = gr.Button("Remove all texts", size="sm", elem_classes="hist-danger")
                self.ask_all = gr.Button("Delete everything", size="sm", elem_classes="hist-danger")
            with gr.Column(visible=False) as self.sure:
                self.sure_text = gr.Markdown("")
                self.what = gr.State(None)
                with gr.Row(elem_classes="hist-actions"):
                    self.yes = gr.Button("Yes, for good", variant="stop", size="sm")
                    self.no = gr.Button("Cancel", size="sm")

    # --- the list --------------------------------------------------------------------------------------

    def _filter(
        self, query: str, engine: str, device: str, precision: str, model: str, machine: str, *rest: str
    ) -> Filter:
        status, vote, since, until = rest
        return Filter(
            query=(query or "").strip()[:500] or None,
            engine=engine or None,
            device=device or None,
            precision=precision or None,
            model=model or None,
            machine=machine or None,
            status=status or None,
            vote=vote or None,
            since=_day(since),
            until=_day(until),
        )

    def _listed(self, offset: int, *chosen: str) -> list[Any]:
        where = self._filter(*chosen)
        page = self.store.conversations(where, limit=view.PAGE_SIZE, offset=offset)
        return [
            readable(view.list_html(page, where.query)),
            f'<p class="hist-position" role="status">{view.position_text(page)}</p>',
            offset,
            gr.update(interactive=offset > 0),
            gr.update(interactive=page.more or offset + len(page.summaries) < page.total),
            _notice(self.store.trouble) or _notice(_no_day(*chosen[-2:]), "warn"),
        ]

    def _first_page(self, *chosen: str) -> list[Any]:
        return self._listed(0, *chosen)

    def _turn_page(self, step: int) -> Callable[..., list[Any]]:
        return lambda offset, *chosen: self._listed(max(0, int(offset or 0) + step * view.PAGE_SIZE), *chosen)

    def _refresh(self, offset: int, *chosen: str) -> list[Any]:
        """The page as it is now, with what the filters can be set to."""
        found = self.store.read(queries.choices)
        return [
            *self._listed(int(offset or 0), *chosen),
            *(gr.update(choices=[(ANY, ""), *((readable(v), v) for v in found[name])]) for name in _CHOICES),
            self.store.keeps_text,
            self.store.get_setting(housekeeping.RETENTION_DAYS) or 0,
        ]

    # --- one conversation ------------------------------------------------------------------------------

    def _open(self, event: gr.EventData) -> list[Any]:
        return self._shown(str(event._data.get("id", ""))[:64] if isinstance(event._data, dict) else None)

    def _shown(self, conversation_id: str | None, shown_turns: int = view.SHOWN_TURNS) -> list[Any]:
        conversation = self.store.conversation(conversation_id) if conversation_id else None
        if conversation is None:
            return [
                None,
                gr.update(visible=True),
                gr.update(visible=False),
                "",
                *[gr.update()] * 2,
                *[gr.update(visible=False)] * 2,
            ]
        return [
            conversation.id,
            gr.update(visible=False),
            gr.update(visible=True),
            readable(view.conversation_html(conversation, shown_turns=shown_turns)),
            readable(view.title_of(conversation)),
            "Unpin" if conversation.pinned else "Pin",
            gr.update(visible=len(conversation.turns) > shown_turns),
            gr.update(visible=False),
        ]

    def _rename(self, conversation_id: str | None, title: str) -> list[Any]:
        if conversation_id:
            self.store.rename(conversation_id, (title or "")[:300])
        return self._shown(conversation_id)

    def _pin(self, conversation_id: str | None) -> list[Any]:
        conversation = self.store.conversation(conversation_id) if conversation_id else None
        if conversation:
            self.store.pin(conversation.id, not conversation.pinned)
        return self._shown(conversation_id)

    def _delete(self, conversation_id: str | None) -> list[Any]:
        conversation = self.store.conversation(conversation_id) if conversation_id else None
        if conversation is None:
            return [gr.update(), gr.update(), None, *self._shown(None)]
        self.store.delete([conversation.id])
        title = fmt.text(fmt.shorten(view.title_of(conversation), 60))
        text = f"“{title}” was deleted. It can be brought back for ten minutes."
        return [
            gr.update(visible=True),
            readable(f'<p class="notice info" role="status">{text}</p>'),
            conversation.id,
            *self._shown(None),
        ]

    def _undo(self, deleted: str | None) -> list[Any]:
        if deleted and not self.store.undelete([deleted]):
            raise StoreError("It is too late: the conversation has been removed for good.")
        return [gr.update(visible=False), "", None, *self._shown(deleted)]

    def _saved(self, kind: str) -> Callable[[str | None], Any]:
        def save(conversation_id: str | None) -> Any:
            conversation = self.store.conversation(conversation_id) if conversation_id else None
            if conversation is None:
                raise StoreError("Open a conversation first.")
            path = self._fresh(file_name(conversation, f".{kind}"))
            exports.write_text(path, exports.conversation_text(self.store.file, conversation, kind))
            return _download(path)

        return save

    def _fresh(self, name: str) -> Path:
        """A path in a private folder that goes with the app; Gradio serves a copy that keeps the file's mode."""
        return Path(tempfile.mkdtemp(dir=self._exports.name)) / name

    # --- everything ------------------------------------------------------------------------------------

    def _export(self, kind: str, *chosen: str) -> Any:
        if kind == "db":
            path = self._fresh(f"backend-arena-{date.today()}.sqlite3")
            exports.export_database(self.store.file, path)
        elif kind in exports.EXPORTS:
            path = self._fresh(f"backend-arena-{date.today()}.{kind}")
            exports.export_selection(self.store.file, self._filter(*chosen), path, kind)
        else:
            raise StoreError("Choose a format first.")
        return _download(path)

    def _import(self, path: str | None, name: str) -> None:
        if not path:
            raise StoreError("No file was chosen.")
        try:
            imported = imports.import_file(
                self.store.file, Path(path), name=(name or "").strip()[:100] or None
            )
        except StoreError as error:
            raise StoreError(str(error).replace(str(path), Path(path).name)) from error
        finally:
            Path(path).unlink(missing_ok=True)
        gr.Info(fmt.text(imported), title="History")

    def _keep_text(self, keep: bool) -> None:
        self.store.set_setting(housekeeping.KEEP_TEXT, bool(keep))

    def _retention(self, days: float) -> None:
        if days not in [value for _, value in RETENTION]:
            raise StoreError("Choose one of the offered periods.")
        if days == (self.store.get_setting(housekeeping.RETENTION_DAYS) or 0):
            return  # the menu reports one choice twice
        self.store.set_setting(housekeeping.RETENTION_DAYS, days or None)
        if days:
            removed = housekeeping.delete_older(self.store.file, days)
            gr.Info(f"{fmt.counted(removed, 'older conversation')} removed.", title="History")

    def _ask(self, what: str) -> Callable[[], list[Any]]:
        text = {
            "texts": "Remove all prompts, replies and titles for good, and keep the numbers?",
            "all": "Delete all conversations with all their numbers for good? This cannot be undone.",
        }[what]
        return lambda: [gr.update(visible=True), text, what]

    def _sure(self, what: str | None) -> list[Any]:
        if what == "texts":
            gr.Info(
                f"The texts of {fmt.counted(self.store.remove_texts(), 'run')} were removed.", title="History"
            )
        elif what == "all":
            removed = self.store.delete_everything()
            gr.Info(f"{fmt.counted(removed, 'conversation')} deleted for good.", title="History")
        return [gr.update(visible=False), None, *self._shown(None)]

    # --- wiring ----------------------------------------------------------------------------------------

    def _wire(self) -> None:
        self._wire_list()
        self._wire_opening()
        self._wire_conversation()
        self._wire_go_on()
        self._wire_everything()

    @property
    def _chosen(self) -> list[Any]:
        """What the list is filtered by."""
        return [self.query, *self.choices.values(), self.since, self.until]

    @property
    def _list_parts(self) -> list[Any]:
        """What a new page of the list fills."""
        return [self.list, self.position, self.offset, self.newer, self.older, self.notice]

    @property
    def _opened(self) -> list[Any]:
        """What opening a conversation fills."""
        return [
            *(self.selected, self.nothing, self.actions, self.detail),
            *(self.title, self.pin, self.all_turns, self.download),
        ]

    def _relist(self, event: Any) -> Any:
        """Show the list anew once an event has gone well."""
        return event.success(told(self._refresh), [self.offset, *self._chosen], self._refreshed, **_QUIET)

    @property
    def _refreshed(self) -> list[Any]:
        return [*self._list_parts, *(self.choices[name] for name in _CHOICES), self.keep_text, self.retention]

    def _wire_list(self) -> None:
        changes = [each.change for each in self._chosen]
        first_page = told(self._first_page)
        gr.on(changes, first_page, self._chosen, self._list_parts, trigger_mode="always_last", **_QUIET)
        self.clear.click(lambda: [*[""] * 9], None, self._chosen[1:], **_QUIET)
        for button, step in ((self.newer, -1), (self.older, 1)):
            button.click(
                told(self._turn_page(step)), [self.offset, *self._chosen], self._list_parts, **_QUIET
            )
        on_show(
            lambda listen: listen(
                told(self._refresh), [self.offset, *self._chosen], self._refreshed, **_QUIET
            )
        )

    def _wire_opening(self) -> None:
        opened = self.list.click(_with_event(self._open), None, [*self._opened, self.shown_turns], **_QUIET)
        opened.then(None, None, None, js=_TO_DETAIL_JS)
        self.all_turns.click(told(lambda i: self._shown(i, 10**9)), self.selected, self._opened, **_QUIET)

    def _wire_conversation(self) -> None:
        """What is done with the one that is open."""
        renamed = [self.rename.click, self.title.submit]
        title = [self.selected, self.title]
        self._relist(gr.on(renamed, told(self._rename), title, self._opened, **_QUIET))
        self._relist(self.pin.click(told(self._pin), self.selected, self._opened, **_QUIET))
        undone = [self.undo_row, self.undo_text, self.deleted, *self._opened]
        self._relist(self.delete.click(told(self._delete), self.selected, undone, **_QUIET))
        self._relist(self.undo.click(told(self._undo), self.deleted, undone, **_QUIET))
        for button, kind in ((self.markdown, "md"), (self.json, "json")):
            saved = button.click(told(self._saved(kind)), self.selected, self.download, **_QUIET)
            _then_download(saved, "history-download")

    def _wire_go_on(self) -> None:
        self.go_on.click(None, None, None, js=_TO_COMPARE_JS)
        # Emptied first, so that asking for the same conversation again is a change too.
        wanted = self.history.open_in_compare
        emptied = self.go_on.click(lambda: None, None, wanted, **_QUIET)
        emptied.then(lambda conversation_id: conversation_id, self.selected, wanted, **_QUIET)

    def _wire_everything(self) -> None:
        exported = self.export.click(told(self._export), [self.format, *self._chosen], self.exported)
        _then_download(exported, "history-export")
        self._relist(self.bring_in.upload(told(self._import), [self.bring_in, self.machine_name], None))
        self.keep_text.input(told(self._keep_text), self.keep_text, None, **_QUIET)
        self._relist(self.retention.input(told(self._retention), self.retention, None, **_QUIET))
        for button, what in ((self.ask_texts, "texts"), (self.ask_all, "all")):
            button.click(self._ask(what), None, [self.sure, self.sure_text, self.what], **_QUIET)
        self.no.click(lambda: gr.update(visible=False), None, self.sure, **_QUIET)
        self._relist(
            self.yes.click(told(self._sure), self.what, [self.sure, self.what, *self._opened], **_QUIET)
        )


def _with_event(function: Callable[[gr.EventData], list[Any]]) -> Callable[[gr.EventData], list[Any]]:
    """`told` hides the annotation by which Gradio hands over the event, so this one spells it out."""

    def handler(event: gr.EventData) -> list[Any]:
        return [*told(function)(event), view.SHOWN_TURNS]

    return handler


def _then_download(event: Any, element_id: str) -> None:
    event.success(None, None, None, js=_DOWNLOAD_JS.replace("%s", element_id))


def _download(path: Path) -> Any:
    return gr.update(
        value=str(path), label=f"Download {path.name} ({fmt.size(path.stat().st_size)})", visible=True
    )


def _day(text: str | None) -> str | None:
    """A day as it was typed, `2026-1-5` too; None while it is not complete."""
    try:
        return datetime.strptime((text or "").strip(), "%Y-%m-%d").date().isoformat()
    except ValueError:
        return None


_BEGUN_DAY = re.compile(r"(\d{1,4}(-\d{0,2}(-\d?)?)?)?")


def _no_day(*texts: str | None) -> str | None:
    """What to tell somebody who typed what cannot become a day; None where there is nothing to tell."""
    typed = [(text or "").strip() for text in texts]
    wrong = next((text for text in typed if not _day(text) and not _BEGUN_DAY.fullmatch(text)), None)
    return (
        wrong and f"“{fmt.shorten(wrong, 20)}” is not a day, so nothing is filtered by it. Write 2026-01-31."
    )


def _notice(text: str | None, kind: str = "error") -> str:
    return f'<p class="notice {kind}" role="alert">{fmt.text(text)}</p>' if text else ""
