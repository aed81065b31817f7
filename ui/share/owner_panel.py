"""The owner's Share button and what is under it: the link with its QR code, the passwords, who is there, the limits.

Everything here is drawn for the owner's eyes only, and only when asked for.
"""

from __future__ import annotations

import io
import platform
import time
from collections.abc import Callable
from typing import Any

import gradio as gr

from engines.protocol import Target
from storage.store import Store, StoreError
from ui import format as fmt
from ui.access import who
from ui.share.settings import OWNER_NAME, VISITOR_NAME
from ui.share.sharing import Sharing, SharingView
from ui.share.visitors import RANGES, Visitors

MACHINE_NAME = "share.machine_name"
LIMIT_LABELS = {
    "panels": ("Panels", "Per visitor"),
    "concurrent_runs": ("Replies at once", "All visitors together"),
    "waiting_runs": ("Replies in line", "Per visitor"),
    "runs_per_minute": ("Replies a minute", "Per visitor"),
    "prompt_tokens": ("Prompt tokens", "With the chat before it"),
    "output_tokens": ("Reply tokens", "At most"),
    "run_s": ("Seconds a reply", "Then it is stopped"),
}
_QUIET: dict[str, Any] = {
    "show_progress": "hidden",
    "concurrency_limit": None,
    "trigger_mode": "multiple",
    "api_visibility": "private",
}
OpenPanels = Callable[[gr.Request], list[Target]]
"""The targets that the owner's own page shows."""


def machine_name(store: Store) -> str:
    """What visitors are told the machine is called; the owner decides, its network name is not told by itself."""
    try:
        return str(store.get_setting(MACHINE_NAME) or "somebody's PC")
    except StoreError:
        return "somebody's PC"


class OwnerPanel:
    """Components, handlers and wiring of the Share button."""

    def __init__(self, sharing: Sharing, visitors: Visitors, store: Store, own_panels: OpenPanels):
        self._sharing, self._visitors, self._store, self._own_panels = sharing, visitors, store, own_panels
        with gr.Column(visible=False, elem_id="share-panel", elem_classes="card share") as self.panel:
            self.view = gr.HTML("", elem_id="share-view", js_on_load=None)
            with gr.Row(elem_classes="bar"):
                self.start = gr.Button(
                    "Share now", variant="primary", size="md", elem_id="share-start", scale=0, min_width=120
                )
                self.end = gr.Button(
                    "End sharing", variant="stop", size="md", elem_id="share-end", scale=0, min_width=120
                )
                self.open_mine = gr.Button(
                    "Open the backends of my panels to visitors",
                    size="md",
                    elem_id="share-open-mine",
                    scale=0,
                    min_width=200,
                )
            with gr.Accordion("What visitors may take", open=False, elem_id="share-limits"):
                with gr.Row(elem_classes="fields"):
                    self.limits = {
                        name: gr.Number(
                            label=label,
                            info=info,
                            minimum=RANGES[name][0],
                            maximum=RANGES[name][1],
                            precision=0,
                            elem_id=f"share-{name.replace('_', '-')}",
                            min_width=130,
                        )
                        for name, (label, info) in LIMIT_LABELS.items()
                    }
                self.name = gr.Textbox(
                    label="What visitors are told this PC is called",
                    placeholder=platform.node(),
                    max_lines=1,
                    elem_id="share-name",
                )
                self.keep = gr.Checkbox(
                    False,
                    label="Keep visitors' prompts and replies in my history (off: numbers only)",
                    elem_id="share-keep",
                )
        self.timer = gr.Timer(2.0, active=False)
        self._shown = gr.State(False)

    def wire(self, button: gr.Button) -> None:
        """`button` opens and closes the panel."""
        fields = [*self.limits.values(), self.name, self.keep]
        shown = [self.panel, self.view, self.start, self.end, self.timer, self._shown]
        looked = [self.view, self.start, self.end]
        button.click(self._toggle, self._shown, [*shown, *fields], **_QUIET)
        self.timer.tick(self._look, None, looked, **_QUIET)
        self.start.click(self._start, None, looked, **_QUIET)
        self.end.click(self._end, None, looked, **_QUIET)
        self.open_mine.click(self._open_mine, None, self.view, **_QUIET)
        for number in self.limits.values():
            number.blur(self._limit, list(self.limits.values()), self.view, **_QUIET)
        self.keep.input(self._keep, self.keep, self.view, **_QUIET)
        self.name.blur(self._name, self.name, self.view, **_QUIET)

    # --- handlers --------------------------------------------------------------------------------------

    def _toggle(self, shown: bool) -> list[Any]:
        now = not shown
        limits = self._visitors.limits
        return [
            gr.update(visible=now),
            *self._look(),
            gr.Timer(active=now),
            now,
            *(getattr(limits, name) for name in self.limits),
            self._store.get_setting(MACHINE_NAME) or "",
            self._visitors.keeps_text,
        ]

    def _look(self) -> list[Any]:
        view = self._sharing.view()
        return [
            panel_html(view, self._visitors),
            gr.update(interactive=not view.opening, visible=not view.on),
            gr.update(visible=view.on),
        ]

    def _start(self, request: gr.Request) -> list[Any]:
        if not self._visitors.targets():
            self._visitors.open_targets(self._own_panels(request))
        self._sharing.start(by=who(request))
        return self._look()

    def _end(self) -> list[Any]:
        self._sharing.end()
        return self._look()

    def _open_mine(self, request: gr.Request) -> str:
        self._visitors.open_targets(self._own_panels(request))
        return panel_html(self._sharing.view(), self._visitors)

    def _limit(self, *values: Any) -> str:
        wanted = {
            name: float(value)
            for name, value in zip(self.limits, values, strict=True)
            if isinstance(value, (int, float)) and value != getattr(self._visitors.limits, name)
        }
        problem = None
        try:
            if wanted:
                self._visitors.set_limits(**wanted)
        except (ValueError, StoreError) as error:
            problem = f"{str(error)[:1].upper()}{str(error)[1:]}"
        return panel_html(self._sharing.view(), self._visitors, problem)

    def _keep(self, keep: bool) -> str:
        self._visitors.keep_text(bool(keep))
        return panel_html(self._sharing.view(), self._visitors)

    def _name(self, name: str) -> str:
        self._store.set_setting(MACHINE_NAME, " ".join(str(name or "").split())[:60])
        return panel_html(self._sharing.view(), self._visitors)


# --- HTML --------------------------------------------------------------------------------------------------


def panel_html(view: SharingView, visitors: Visitors, problem: str | None = None) -> str:
    """How sharing stands."""
    parts = ["<h2>Share this page</h2>"]
    for text in (problem, view.problem):
        if text:
            parts.append(f'<p class="notice error" role="alert">{fmt.text(text)}</p>')
    parts.append(_state(view))
    if view.on:
        parts.append(_way_in(view))
        parts.append(_guests(view))
    parts.append(_opened(visitors))
    return "".join(parts)


def _state(view: SharingView) -> str:
    if view.opening:
        return '<p role="status">Opening the link …</p>'
    if not view.on:
        return (
            "<p>Visitors can chat with the backends that you open, within the limits below, and see their own "
            "conversations only. Loading, downloading, settings and your history stay yours. From the moment you "
            "share, everyone logs in; this browser stays in.</p>"
        )
    return "<p>Shared. Ending it logs all visitors out at once.</p>"


def _way_in(view: SharingView) -> str:
    addresses = [view.link] if view.link else list(view.addresses)
    if not addresses:
        return ""
    links = "".join(
        f'<p class="share-link"><code>{fmt.text(address)}</code> {_copy(address, "this address")}</p>'
        for address in addresses
    )
    if view.has_auth_file:
        passwords = "<p>Names and passwords are those of your auth file.</p>"
    else:
        visitor = (
            f"<dt>Visitors</dt><dd><code>{VISITOR_NAME}</code> <code>{fmt.text(view.visitor_password)}</code> "
            f"{_copy(view.visitor_password, 'the visitors&#x27; password')}</dd>"
            if view.visitor_password
            else "<dt>Visitors</dt><dd>need no password</dd>"
        )
        owner = (
            f"<dt>You, elsewhere</dt><dd><code>{OWNER_NAME}</code> <code>{fmt.text(view.owner_password)}</code></dd>"
            if view.owner_password
            else f"<dt>You, elsewhere</dt><dd><code>{OWNER_NAME}</code> and the password you chose</dd>"
        )
        passwords = f"<dl>{visitor}{owner}</dl>"
    login = addresses[0] if view.anonymous else f"{addresses[0]}/login?name={VISITOR_NAME}"
    return f'<div class="share-in"><div>{links}{passwords}</div>{qr_code(login)}</div>'


def _copy(text: str, what: str) -> str:
    """A button that copies `text`."""
    return (
        f'<button type="button" class="copy-reply" data-copy="{fmt.text(text)}">Copy<span class="sr"> {what}</span>'
        "</button>"
    )


def qr_code(address: str) -> str:
    """The address as an image to be photographed; dark on light in either theme, as cameras need it."""
    import segno

    out = io.BytesIO()
    segno.make(address, error="m").save(
        out,
        kind="svg",
        scale=4,
        border=3,
        xmldecl=False,
        svgns=True,
        omitsize=True,
        dark="#000000",
        light="#ffffff",
    )
    picture = out.getvalue().decode("utf-8").strip().replace("<svg ", '<svg aria-hidden="true" ', 1)
    return f'<figure class="qr" role="img" aria-label="QR code of the link">{picture}</figure>'


def _guests(view: SharingView) -> str:
    if not view.guests:
        return "<h3>Who is here</h3><p>Nobody yet.</p>"
    rows = "".join(
        f"<li>{fmt.text(guest.name)} {number}: since {time.strftime('%H:%M', time.localtime(guest.since))}, "
        f"{fmt.counted(guest.pages, 'open page')}</li>"
        for number, guest in enumerate(view.guests, 1)
    )
    return f"<h3>Who is here</h3><ul>{rows}</ul>"


def _opened(visitors: Visitors) -> str:
    targets = visitors.targets()
    if not targets:
        return "<h3>Open to visitors</h3><p>No backend yet.</p>"
    items = "".join(f"<li>{fmt.text(target)}</li>" for target in targets)
    return f"<h3>Open to visitors</h3><ul>{items}</ul>"
