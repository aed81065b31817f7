"""The page's own look: a calm Gradio theme from system fonts, its style sheet, and what keeps it from calling out.

Colours live once, as CSS variables in assets/page.css, for light and dark; the theme maps Gradio's own variables
onto them. Nothing is fetched from another host: Gradio's default theme would load web fonts, ours names installed
ones, and a Content-Security-Policy allows this server only, whatever a model writes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ASSETS = Path(__file__).parent / "assets"

SANS = (
    "ui-sans-serif",
    "system-ui",
    "Segoe UI Variable Text",
    "Segoe UI",
    "Helvetica Neue",
    "Noto Sans",
    "sans-serif",
)
MONO = ("ui-monospace", "Cascadia Mono", "Consolas", "SF Mono", "DejaVu Sans Mono", "monospace")

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",  # Gradio builds its templates with new Function
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "frame-src 'none'",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
    )
)


class SecurityHeaders:
    """ASGI middleware: every answer says that this page may load nothing from anywhere else."""

    HEADERS = (
        (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
    )

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *self.HEADERS]
            await send(message)

        await self.app(scope, receive, send_with_headers if scope["type"] == "http" else send)


def theme() -> gr.themes.Base:
    """Gradio's variables, pointed at ours."""
    base = gr.themes.Base(
        primary_hue="teal",
        neutral_hue="slate",
        font=list(SANS),
        font_mono=list(MONO),
        radius_size="md",
        text_size="md",
    )
    both = {
        "body_background_fill": "var(--ba-bg)",
        "body_text_color": "var(--ba-text)",
        "body_text_color_subdued": "var(--ba-soft)",
        "background_fill_primary": "var(--ba-surface)",
        "background_fill_secondary": "var(--ba-bg)",
        "border_color_primary": "var(--ba-line)",
        "border_color_accent": "var(--ba-accent)",
        "border_color_accent_subdued": "var(--ba-line)",
        "color_accent_soft": "var(--ba-accent-soft)",
        "link_text_color": "var(--ba-accent)",
        "link_text_color_hover": "var(--ba-accent-strong)",
        "link_text_color_active": "var(--ba-accent-strong)",
        "link_text_color_visited": "var(--ba-accent)",
        "block_background_fill": "var(--ba-surface)",
        "block_border_color": "var(--ba-line)",
        "block_label_background_fill": "var(--ba-surface)",
        "block_label_text_color": "var(--ba-soft)",
        "block_title_text_color": "var(--ba-soft)",
        "block_info_text_color": "var(--ba-soft)",
        "panel_background_fill": "var(--ba-surface)",
        "input_background_fill": "var(--ba-field)",
        "input_background_fill_focus": "var(--ba-field)",
        "input_border_color": "var(--ba-line-strong)",
        "input_border_color_focus": "var(--ba-accent)",
        "input_placeholder_color": "var(--ba-soft)",
        "button_primary_background_fill": "var(--ba-accent-fill)",
        "button_primary_background_fill_hover": "var(--ba-accent-fill-hover)",
        "button_primary_border_color": "var(--ba-accent-fill)",
        "button_primary_text_color": "#ffffff",
        "button_secondary_background_fill": "var(--ba-surface)",
        "button_secondary_background_fill_hover": "var(--ba-hover)",
        "button_secondary_border_color": "var(--ba-line-strong)",
        "button_secondary_text_color": "var(--ba-text)",
        "button_cancel_background_fill": "var(--ba-bad-soft)",
        "button_cancel_background_fill_hover": "var(--ba-bad-soft)",
        "button_cancel_border_color": "var(--ba-bad)",
        "button_cancel_text_color": "var(--ba-bad)",
        "checkbox_background_color": "var(--ba-field)",
        "checkbox_background_color_selected": "var(--ba-accent-fill)",
        "checkbox_border_color": "var(--ba-line-strong)",
        "checkbox_border_color_selected": "var(--ba-accent-fill)",
        "checkbox_label_background_fill": "var(--ba-surface)",
        "checkbox_label_background_fill_hover": "var(--ba-hover)",
        "checkbox_label_background_fill_selected": "var(--ba-accent-soft)",
        "checkbox_label_border_color": "var(--ba-line-strong)",
        "checkbox_label_text_color": "var(--ba-text)",
        "checkbox_label_text_color_selected": "var(--ba-text)",
        "slider_color": "var(--ba-accent-fill)",
        "table_border_color": "var(--ba-line)",
        "table_even_background_fill": "var(--ba-surface)",
        "table_odd_background_fill": "var(--ba-bg)",
        "table_row_focus": "var(--ba-accent-soft)",
        "table_text_color": "var(--ba-text)",
        "code_background_fill": "var(--ba-code)",
        "error_background_fill": "var(--ba-bad-soft)",
        "error_border_color": "var(--ba-bad)",
        "error_text_color": "var(--ba-bad)",
        "accordion_text_color": "var(--ba-text)",
        "stat_background_fill": "var(--ba-accent-soft)",
    }
    return base.set(
        **both,
        **{f"{name}_dark": value for name, value in both.items()},
        color_accent="var(--ba-accent)",
        block_border_width="1px",
        block_shadow="none",
        block_padding="10px 12px",
        block_radius="10px",
        block_title_text_weight="500",
        block_title_text_size="13px",
        block_label_text_size="13px",
        button_border_width="1px",
        button_large_radius="8px",
        button_medium_radius="8px",
        button_small_radius="7px",
        button_large_text_weight="550",
        button_medium_text_weight="500",
        button_small_text_weight="500",
        button_primary_shadow="none",
        button_secondary_shadow="none",
        button_transition="background-color .12s, border-color .12s",
        input_border_width="1px",
        input_shadow="none",
        input_shadow_focus="0 0 0 2px var(--ba-ring)",
        layout_gap="12px",
        shadow_drop="none",
        shadow_drop_lg="none",
    )


def launch_options() -> dict[str, Any]:
    """Arguments for `Blocks.launch` that make the page ours and keep it on this host."""
    return {
        "theme": theme(),
        "css_paths": [ASSETS / name for name in ("page.css", "compare.css", "history.css", "system.css")],
        "head": f"<script>{(ASSETS / 'page.js').read_text('utf-8')}</script>",
        "favicon_path": ASSETS / "favicon.png",
        "app_kwargs": {"middleware": [Middleware(SecurityHeaders)]},
        "footer_links": [],
        "run_history": False,
        "ssr_mode": False,
        "enable_monitoring": False,
    }
