"""Short ways to put turns and runs into a store."""

from __future__ import annotations

from typing import Any

from engines.protocol import Failed, Finished, Loaded, PreparedModel, RunMetrics, Target
from storage.store import Store

MACHINE = {"name": "desk", "os": "Linux 6.1", "cpu": "Test CPU", "power": "AC"}
CPU = Target("openvino-genai", "CPU", "int4")
OTHER = Target("transformers", "CPU", "fp32")
SETTINGS = {"max_new_tokens": 64, "temperature": 0.0}


def turn(store: Store, conversation_id: str, prompt: str = "Hello?", **more: Any) -> str:
    return store.start_turn(
        conversation_id, prompt, **{"system_prompt": None, "mode": "in-turn", "settings": SETTINGS, **more}
    )


def metrics(offsets_s: tuple[float, ...], **more: Any) -> RunMetrics:
    return RunMetrics(
        prompt_tokens=12,
        output_tokens=len(offsets_s),
        prompt_sha256="ab" * 32,
        token_offsets_s=offsets_s,
        total_s=(offsets_s or (0.0,))[-1],
        **{"peak_rss_bytes": 10**8, **more},
    )


def run(
    store: Store,
    turn_id: str,
    text: str = "Hi.",
    *,
    panel: int = 0,
    target: Target = CPU,
    offsets_s: tuple[float, ...] = (0.2, 0.25, 0.3, 0.4),
    failed: Failed | None = None,
    finish_reason: str = "stop",
    machine: dict[str, Any] | None = None,
    contended: bool = False,
    attempt: int = 1,
    versions: dict[str, str] | None = None,
    revision: str = "rev1",
) -> str:
    run_id = store.start_run(
        turn_id, panel, target, machine=machine or MACHINE, contended=contended, attempt=attempt
    )
    store.describe_run(
        run_id,
        model=PreparedModel(
            "/models/x", target.model, target.precision, "openvino", revision, {"bits": 4}, "cd" * 32
        ),
        loaded=Loaded(
            1.5, 0.5, None, 1, 2, target.device, versions or {"openvino": "2026.4"}, {"driver": "1"}
        ),
    )
    numbers = metrics(offsets_s)
    outcome = failed or Finished(run_id, finish_reason, text, numbers)
    store.finish_run(run_id, outcome, text=text, metrics=numbers, felt_ttft_s=0.21)
    return run_id
