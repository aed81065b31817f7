"""The page's own look: a calm Gradio theme from system fonts, its style sheet, and what keeps it from calling out.

Colours live once, as CSS variables in assets/page.css, for light and dark; the theme maps Gradio's own variables
onto them. Nothing is fetched from another host: Gradio's default theme would load web fonts, ours names installed
ones, and the guard's Content-Security-Policy allows this server only, whatever a model writes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from ui.share.door import Door
from ui.share.guarded_app import GuardedApp, VisitorsServer

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


_COLOURS = {
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
"""Gradio's variables, the same in light and dark: ours change by themselves."""
_MEASURES = {
    "color_accent": "var(--ba-accent)",
    "block_border_width": "1px",
    "block_shadow": "none",
    "block_padding": "10px 12px",
    "block_radius": "10px",
    "block_title_text_weight": "500",
    "block_title_text_size": "13px",
    "block_label_text_size": "13px",
    "button_border_width": "1px",
    "button_large_radius": "8px",
    "button_medium_radius": "8px",
    "button_small_radius": "7px",
    "button_large_text_weight": "550",
    "button_medium_text_weight": "500",
    "button_small_text_weight": "500",
    "button_primary_shadow": "none",
    "button_secondary_shadow": "none",
    "button_transition": "background-color .12s, border-color .12s",
    "input_border_width": "1px",
    "input_shadow": "none",
    "input_shadow_focus": "0 0 0 2px var(--ba-ring)",
    "layout_gap": "12px",
    "shadow_drop": "none",
    "shadow_drop_lg": "none",
}


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
    return base.set(**_COLOURS, **{f"{name}_dark": value for name, value in _COLOURS.items()}, **_MEASURES)


MOST_UPLOAD = "200mb"


def launch_options(
    door: Door | None = None, api: Any = None, visitors_page: Callable[[], gr.Blocks] | None = None
) -> dict[str, Any]:
    """Arguments for `Blocks.launch` that make the page ours and keep it on this host.

    `door`: who may come in; without one, this computer only, and as the owner. `api`: what programs use (ui/api/);
    `visitors_page` builds what visitors get.
    """
    door = door or Door()
    look: dict[str, Any] = {
        "theme": theme(),
        "css_paths": [
            ASSETS / f"{name}.css" for name in ("page", "compare", "history", "system", "share", "measure")
        ],
        "head": f"<script>{(ASSETS / 'page.js').read_text('utf-8')}</script>",
        "favicon_path": ASSETS / "favicon.png",
    }
    visitors = VisitorsServer(visitors_page, door, look) if visitors_page is not None else None
    return {
        **look,
        "_app": GuardedApp(door, api, visitors),
        "app_kwargs": {"lifespan": visitors.lifespan} if visitors is not None else {},
        "max_file_size": MOST_UPLOAD,
        "mcp_server": False,
        "share": False,
        "footer_links": [],
        "run_history": False,
        "ssr_mode": False,
        "enable_monitoring": False,
    }
