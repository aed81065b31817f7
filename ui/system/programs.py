"""The API for programs, on the System tab: where it is, its keys, and the names that lanes go by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from engines.endpoints.registry import Endpoints
from storage.store import StoreError
from ui.api.errors import ApiError
from ui.api.keys import ApiKey, ApiKeys, KeyNameError
from ui.api.lanes import Lanes, lane_name
from ui.format import counted, text, when

_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}


@dataclass(frozen=True)
class Doors:
    """What goes out and in beside the page: lanes for programs and their keys, and other people's servers."""

    endpoints: Endpoints
    keys: ApiKeys
    lanes: Lanes


class Programs:
    """The section's parts and what its buttons do."""

    def __init__(self, keys: ApiKeys, lanes: Lanes):
        self._keys, self._lanes = keys, lanes
        self._build()

    def _build(self) -> None:
        self.intro = gr.HTML(elem_id="api-intro")
        self.table = gr.HTML(elem_id="api-keys")
        with gr.Row(elem_classes="bar", equal_height=True):
            name = gr.Textbox(
                label="New key for", placeholder="my laptop", elem_id="key-name", min_width=160, scale=1
            )
            add = gr.Button("Make a key", variant="primary", size="md", elem_id="key-add", scale=0)
            known = gr.Dropdown([], label="Key to revoke", elem_id="key-known", min_width=160, scale=1)
            revoke = gr.Button("Revoke", size="md", elem_id="key-revoke", scale=0)
        made = gr.Textbox(
            label="The new key: copy it now, it is not shown again",
            elem_id="key-made",
            interactive=False,
            visible=False,
            buttons=["copy"],
        )
        required = gr.Checkbox(label="Want a key from programs on this computer, too", elem_id="key-required")
        gr.HTML(
            "<p>A lane can have a name of your own, and programs that insist on one, such as gpt-4o, get that lane."
            "</p>"
        )
        self.aliases = gr.HTML(elem_id="api-aliases")
        with gr.Row(elem_classes="bar", equal_height=True):
            alias = gr.Textbox(
                label="Name", placeholder="gpt-4o", elem_id="alias-name", min_width=140, scale=1
            )
            lane = gr.Dropdown(
                [], label="Lane", allow_custom_value=True, elem_id="alias-lane", min_width=240, scale=2
            )
            give = gr.Button("Give this name", size="md", elem_id="alias-give", scale=0)
            take = gr.Button("Take it away", size="md", elem_id="alias-take", scale=0)
        self.said = gr.HTML(elem_id="api-said")
        filled = [self.table, known, required, self.aliases, self.said]
        gr.on([add.click, name.submit], self._add, name, [*filled, made, name], **_QUIET)
        revoke.click(self._revoke, known, [*filled, made], **_QUIET)
        required.input(self._require, required, filled, **_QUIET)
        give.click(self._give, [alias, lane], [*filled, alias], **_QUIET)
        take.click(self._take, alias, [*filled, alias], **_QUIET)
        lane.focus(self._lanes_now, None, lane, **_QUIET)
        timer = gr.Timer(1.0)
        timer.tick(self._first, None, [self.intro, *filled, timer], **_QUIET)

    # --- what the buttons do ---------------------------------------------------------------------------

    def _first(self, request: gr.Request) -> list[Any]:
        host = request.headers.get("host", "localhost:7860") if request.headers else "localhost:7860"
        return [intro_html(f"http://{host}/v1"), *self._show(), gr.Timer(active=False)]

    def _show(self, said: str = "", kind: str = "info") -> list[Any]:
        keys = self._keys.all()
        names = [key.name for key in keys]
        notice = f'<p class="notice {kind}" role="status">{text(said)}</p>' if said else ""
        return [
            keys_html(keys),
            gr.update(choices=names, value=names[-1] if names else None),
            self._keys.required,
            aliases_html(self._lanes.aliases()),
            notice,
        ]

    def _add(self, name: str) -> list[Any]:
        try:
            key = self._keys.add(name or "")
        except KeyNameError as error:
            return [*self._show(str(error), "error"), gr.update(visible=False), gr.skip()]
        said = f"The key for {name.strip()} is made. Programs send it as their API key."
        return [*self._show(said), gr.update(value=key, visible=True), ""]

    def _revoke(self, name: str | None) -> list[Any]:
        hidden = gr.update(value="", visible=False)
        if not name:
            return [*self._show(), hidden]
        try:
            self._keys.revoke(name)
        except KeyNameError as error:
            return [*self._show(str(error), "error"), hidden]
        return [*self._show(f"The key for {name} opens nothing any more."), hidden]

    def _require(self, required: bool) -> list[Any]:
        self._keys.require(bool(required))
        return self._show("A key is wanted from everybody now." if required else "")

    def _give(self, alias: str, lane: str | None) -> list[Any]:
        if not lane:
            return [*self._show("Choose the lane that the name stands for.", "warn"), gr.skip()]
        try:
            self._lanes.set_alias(alias or "", lane)
        except (ApiError, StoreError) as error:
            return [*self._show(str(error), "error"), gr.skip()]
        return [*self._show(f"{alias.strip()} is now {lane}."), ""]

    def _take(self, alias: str) -> list[Any]:
        if (alias or "").strip() not in self._lanes.aliases():
            return [*self._show("Write the name that is to be taken away.", "warn"), gr.skip()]
        self._lanes.set_alias(alias, None)
        return [*self._show(f"{alias.strip()} stands for nothing any more."), ""]

    def _lanes_now(self) -> Any:
        return gr.update(choices=[lane_name(lane.target) for lane in self._lanes.all()])


def intro_html(base: str) -> str:
    """Where programs find us."""
    return (
        "<h2>For programs</h2><p>Programs that speak OpenAI's API can use these backends. Base URL: "
        f"<code>{text(base)}</code>, model: <code>auto</code> (the fastest lane that was measured here), an alias, "
        "or a lane such as <code>openvino-genai/CPU/int4@demo</code>. On this computer no key is needed; as soon as "
        "the app can be reached from others, one is. Every request is in the history.</p>"
    )


def keys_html(keys: tuple[ApiKey, ...]) -> str:
    """Every key by its name; none of them can be shown again."""
    if not keys:
        return '<p class="soft">No keys yet.</p>'
    rows = "".join(
        f'<tr><th scope="row">{text(key.name)}</th><td>…{text(key.hint)}</td><td>{text(_use_of(key))}</td></tr>'
        for key in keys
    )
    return (
        f'<section class="card engine" aria-label="Keys"><table><caption class="sr">{counted(len(keys), "key")}'
        f"</caption><thead class='sr'><tr><th>Name</th><th>Ends with</th><th>Use</th></tr></thead><tbody>{rows}"
        "</tbody></table></section>"
    )


def _use_of(key: ApiKey) -> str:
    used = f"last used {when(key.last_used_at)}" if key.last_used_at else "never used"
    return f"made {when(key.created_at)}, {used}"


def aliases_html(aliases: dict[str, str]) -> str:
    """Names that the owner gave."""
    if not aliases:
        return ""
    items = "".join(f"<li><code>{text(alias)}</code> is {text(lane)}</li>" for alias, lane in aliases.items())
    return f'<ul class="machine">{items}</ul>'
