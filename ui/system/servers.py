"""Other servers as backends, on the System tab: add one, see whether it answers, find those on this computer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from engines.endpoints.discovery import Found, find_servers
from engines.endpoints.registry import SETTINGS, Endpoint, Endpoints
from engines.engine import EngineError
from engines.protocol import DeviceStatus
from engines.runtime.manager import EngineManager
from ui.format import counted, text

_QUIET: dict[str, Any] = {"show_progress": "minimal", "api_visibility": "private", "concurrency_limit": None}
_INTRO = (
    "<h2>Other servers</h2><p>Ollama, LM Studio, llama.cpp, vLLM, OpenVINO Model Server, another Backend Arena: any "
    "server that speaks OpenAI's API can be a panel beside the others. Choose the engine “Server” in a panel, then "
    "its name. Its times are taken as its words reach this computer, and called so.</p>"
)


class Servers:
    """The section's parts and what its buttons do."""

    def __init__(self, manager: EngineManager, endpoints: Endpoints):
        self._manager, self._endpoints = manager, endpoints
        self._found: tuple[Found, ...] = ()
        self._build()

    def _build(self) -> None:
        gr.HTML(_INTRO)
        self.table = gr.HTML(elem_id="system-servers")
        with gr.Row(elem_classes="bar", equal_height=True):
            name = gr.Textbox(
                label="Name", placeholder="ollama", elem_id="server-name", min_width=140, scale=1
            )
            url = gr.Textbox(
                label="Address",
                placeholder="http://127.0.0.1:11434/v1",
                elem_id="server-url",
                min_width=240,
                scale=3,
            )
            key = gr.Textbox(
                label="Key, if it wants one",
                placeholder="the key, or $NAME of an environment variable",
                type="password",
                elem_id="server-key",
                min_width=220,
                scale=2,
            )
        with gr.Row(elem_classes="bar"):
            add = gr.Button("Add server", variant="primary", size="md", elem_id="server-add", scale=0)
            find = gr.Button("Find servers on this computer", size="md", elem_id="server-find", scale=0)
        with gr.Row(elem_classes="bar", equal_height=True, visible=False) as offer:
            found = gr.Dropdown([], label="Found on this computer", elem_id="server-found", scale=2)
            take = gr.Button("Fill in", size="md", elem_id="server-take", scale=0)
        with gr.Row(elem_classes="bar", equal_height=True, visible=False) as removal:
            known = gr.Dropdown([], label="Forget a server and its key", elem_id="server-known", scale=2)
            remove = gr.Button("Forget", size="md", elem_id="server-remove", scale=0)
        self.said = gr.HTML(elem_id="server-said")
        self.filled = [self.table, known, removal]
        cleared = [*self.filled, self.said, name, url, key]
        self.changed = [
            gr.on([add.click, url.submit, key.submit], self._add, [name, url, key], cleared, **_QUIET),
            remove.click(self._remove, known, [*self.filled, self.said], **_QUIET),
        ]
        """After these the engines have something else to say."""
        find.click(self._find, None, [found, offer, self.said], **_QUIET)
        take.click(self._take, found, [name, url], **_QUIET)
        timer = gr.Timer(1.0)
        timer.tick(self._tick, None, [*self.filled, timer], **{**_QUIET, "show_progress": "hidden"})

    # --- what the buttons do ---------------------------------------------------------------------------

    def _tick(self) -> list[Any]:
        """Fills the section; ticks until the engines have been asked."""
        return [*self._show(), gr.Timer(active=self._manager.known_availability is None)]

    def _show(self) -> list[Any]:
        endpoints = self._endpoints.all()
        names = [entry.name for entry in endpoints]
        table = servers_html(endpoints, self._statuses(), self._endpoints.has_key)
        return [
            table,
            gr.update(choices=names, value=names[0] if names else None),
            gr.update(visible=bool(names)),
        ]

    def _statuses(self) -> dict[str, DeviceStatus]:
        availability = self._manager.known_availability or {}
        specs = [spec.name for spec in self._manager.specs.values() if spec.settings == SETTINGS]
        return {
            s.device: s for name in specs if name in availability for s in availability[name].device_status
        }

    def _add(self, name: str, url: str, key: str) -> list[Any]:
        try:
            endpoint = self._endpoints.add(name or "", url or "", key or "")
        except EngineError as error:
            kept = [gr.skip()] * 3
            return [*self._show(), _said(f"{error} {error.remedy or ''}", "error"), *kept]
        self._manager.settings_changed(SETTINGS)
        said = added_html(endpoint.name, self._statuses().get(endpoint.name))
        return [*self._show(), said, "", "", ""]

    def _remove(self, name: str | None) -> list[Any]:
        if name:
            self._endpoints.remove(name)
            self._manager.settings_changed(SETTINGS)
        return [*self._show(), _said(f"{name} and its key are forgotten.", "info") if name else ""]

    def _find(self) -> list[Any]:
        known = {entry.url for entry in self._endpoints.all()}
        self._found = tuple(server for server in find_servers() if server.url not in known)
        if not self._found:
            said = "No further server answers on this computer's usual ports."
            return [gr.update(choices=[]), gr.update(visible=False), _said(said, "info")]
        choices = [
            (f"{server.title} at {server.url}, {counted(len(server.models), 'model')}", server.url)
            for server in self._found
        ]
        said = f"{counted(len(self._found), 'server')} found. Nothing is used until you add it."
        return [
            gr.update(choices=choices, value=choices[0][1]),
            gr.update(visible=True),
            _said(said, "info"),
        ]

    def _take(self, url: str | None) -> list[Any]:
        server = next((server for server in self._found if server.url == url), None)
        return [server.name, server.url] if server else [gr.skip(), gr.skip()]


def _said(words: str, kind: str) -> str:
    return f'<p class="notice {kind}" role="status">{text(words.strip())}</p>'


def added_html(name: str, status: DeviceStatus | None) -> str:
    """What is said of a server that was just added; None: it has not been asked."""
    if status is None or not status.ok:
        reason = f"{status.reason} {status.remedy or ''}" if status else "It has not been asked yet."
        return _said(f"{name} is added, but: {reason}", "warn")
    if not status.models:
        doubt = "Is its address right? It usually ends in /v1; if it is, write the model's name in a panel."
        return _said(f"{name} answers, but lists no models. {doubt}", "warn")
    return _said(
        f"{name} answers: {counted(len(status.models), 'model')}. Choose “Server” in a panel.", "info"
    )


def servers_html(endpoints: Sequence[Endpoint], statuses: Mapping[str, DeviceStatus], has_key: Any) -> str:
    """One row per server: whether it answers, what it has, whether there is a key."""
    if not endpoints:
        return '<p class="soft">None added yet.</p>'
    rows = "".join(_row(entry, statuses.get(entry.name), has_key(entry)) for entry in endpoints)
    return (
        '<section class="card engine" aria-label="Other servers"><table class="servers">'
        "<thead class='sr'><tr><th>Name</th><th>State</th><th>Details</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></section>"
    )


def _row(entry: Endpoint, status: DeviceStatus | None, has_key: bool) -> str:
    if status is None:
        state, details = '<span class="no">…</span>', "not asked yet"
    elif status.ok:
        models = ", ".join((status.models or ())[:5]) + (" …" if len(status.models or ()) > 5 else "")
        state = '<span class="yes">● yes</span>'
        details = text(models or "it does not list its models")
    else:
        state = '<span class="no">○ no</span>'
        details = f'{text(status.reason or "")}<p class="remedy">→ {text(status.remedy or "")}</p>'
    key = "no key"
    if entry.key_variable:
        key = f"key from ${entry.key_variable}" + ("" if has_key else ", which is not set")
    elif has_key:
        key = "with a key"
    passing = "" if entry.lasting else " · for this start only"
    facts = f'<span class="soft">{text(entry.url)} · {text(key)}{passing}</span>'
    return f'<tr><th scope="row">{text(entry.name)}</th><td>{state}</td><td>{facts}<br>{details}</td></tr>'
