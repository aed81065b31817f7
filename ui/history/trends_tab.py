"""The Trends tab: decode rate and TTFT of two selections over time, side by side, on one scale.

Each side is a model, a target and, with several machines in the history, a machine. What is shown comes from the
history alone; contended runs are drawn apart and never enter the median of the others.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from engines.protocol import ProtocolError, Target
from storage import queries
from storage.codec import readable
from storage.records import Filter
from storage.store import Store, StoreError
from storage.trends import METRICS, Trend, trend
from ui.history.tab import told
from ui.history.trends_svg import top_value, trend_html
from ui.tabs import on_show

ALL = ""
_QUIET = {"show_progress": "hidden"}
_EMPTY = (
    '<p class="hist-empty">No finished run yet. Send a prompt on the Compare tab; its speed appears here.</p>'
)


def build(store: Store) -> None:
    """Build the tab inside a Blocks (and, as a rule, a Tab, which then refreshes it when it is opened)."""
    _Tab(store)


class _Tab:
    def __init__(self, store: Store):
        self.store = store
        gr.Markdown(
            "Medians over time with a band from the 10th to the 90th percentile. Runs that shared the machine with "
            "other work of this app (**contended**) or with other programs (**disturbed**) are drawn apart. Numbered "
            "lines: a driver, package or power state changed."
        )
        with gr.Row(elem_classes="trends"):
            self.sides = [self._side(name) for name in ("A", "B")]
        self._wire()

    def _side(self, name: str) -> dict[str, Any]:
        with gr.Column(min_width=320):
            with gr.Row():
                model = gr.Dropdown([], label=f"Model {name}", filterable=False, scale=3, min_width=150)
                target = gr.Dropdown([], label=f"Target {name}", filterable=False, scale=4, min_width=230)
                machine = gr.Dropdown([("All", ALL)], value=ALL, label=f"Machine {name}", filterable=False)
            charts = gr.HTML(_EMPTY, elem_id=f"trends-{name.lower()}", js_on_load=None)
        return {"model": model, "target": target, "machine": machine, "charts": charts}

    # --- handlers --------------------------------------------------------------------------------------

    def _refresh(self, *chosen: str | None) -> list[Any]:
        """Offer what there is, keep what is chosen, and take the two most used targets where nothing is."""
        used, machines = self.store.read(
            lambda db: (queries.used_targets(db), queries.choices(db)["machine"])
        )
        updates: list[Any] = []
        now: list[str | None] = []
        for side, (model, target, machine) in enumerate((chosen[:3], chosen[3:])):
            models = list(dict.fromkeys(each.model for each in used))
            first = used[min(side, len(used) - 1)] if used else None
            if model not in models:
                model, target = (first.model, first.spelling) if first else (None, None)
            targets = [each.spelling for each in used if each.model == model]
            target = target if target in targets else next(iter(targets), None)
            machine = machine if machine in machines else ALL
            updates += [
                gr.update(choices=[(readable(each), each) for each in models], value=model),
                gr.update(choices=[(readable(each), each) for each in targets], value=target),
                gr.update(
                    choices=[("All", ALL), *((readable(each), each) for each in machines)], value=machine
                ),
            ]
            now += [model, target, machine]
        return [*updates, *self._charts(*now)]

    def _charts(self, *chosen: str | None) -> list[str]:
        """Both sides' charts; each metric has one scale for both."""
        sides = [self._trends(*chosen[:3]), self._trends(*chosen[3:])]
        tops = {metric: top_value([side[metric] for side in sides if side]) for metric in METRICS}
        return [
            readable("".join(trend_html(side[metric], tops[metric]) for metric in METRICS)) or ""
            if side
            else _EMPTY
            for side in sides
        ]

    def _trends(
        self, model: str | None, spelling: str | None, machine: str | None
    ) -> dict[str, Trend] | None:
        if not model or not spelling:
            return None
        try:
            target = Target.parse(spelling, model)
        except ProtocolError as error:
            raise StoreError(str(error)) from error
        where = Filter(
            engine=target.engine,
            device=target.device,
            precision=target.precision,
            model=model,
            machine=machine or None,
        )
        return self.store.read(lambda db: {metric: trend(db, where, metric) for metric in METRICS})

    # --- wiring ----------------------------------------------------------------------------------------

    def _wire(self) -> None:
        chosen = [side[name] for side in self.sides for name in ("model", "target", "machine")]
        charts = [side["charts"] for side in self.sides]
        refresh, draw = told(self._refresh), told(self._charts)
        for side in self.sides:
            side["model"].input(refresh, chosen, [*chosen, *charts], **_QUIET)
            for name in ("target", "machine"):
                side[name].input(draw, chosen, charts, **_QUIET)
        on_show(lambda listen: listen(refresh, chosen, [*chosen, *charts], **_QUIET))
