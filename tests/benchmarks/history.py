"""How the history behaves with 100,000 runs in it: search, first page, filtered trend, saving beside a reader.

    python tests/benchmarks/history.py [--runs 100000] [--tokens 120] [--keep FILE] [--json]

Fills a new history through the same SQL rows that the app writes (256 of them through the Store itself, to time
it), then times what a person does. Times are medians and the worst of several; sizes are bytes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from engines.protocol import Finished, RunMetrics, Target
from storage.codec import content_id, pack_offsets, timestamp, to_json
from storage.exchange.exports import export_selection
from storage.records import Filter
from storage.rows import offset_columns
from storage.store import Store, insert
from storage.trends import METRICS, trend

TARGETS = [
    Target(engine, device, precision, model)
    for engine, device, precision in (
        ("openvino-genai", "CPU", "int4"),
        ("openvino-genai", "GPU", "int4"),
        ("openvino-genai", "NPU", "int4"),
        ("optimum-intel", "CPU", "int8"),
        ("onnxruntime-genai", "CPU", "int4"),
        ("transformers", "CPU", "bf16"),
    )
    for model in ("demo", "microsoft/Phi-3.5-mini-instruct")
]
LIMITS_MS = {"search": 100, "first page": 200, "filtered trend": 500, "saving a finished run": 5}
_SYLLABLES = (
    "ba",
    "re",
    "na",
    "lo",
    "mi",
    "tu",
    "ver",
    "sa",
    "qui",
    "den",
    "for",
    "ing",
    "ter",
    "al",
    "o",
    "ti",
    "ux",
)


def vocabulary(size: int = 20_000) -> tuple[list[str], list[float]]:
    """Made-up words with the skewed frequencies of real text (Zipf)."""
    rng = random.Random(1)
    words = list({"".join(rng.choices(_SYLLABLES, k=rng.randint(1, 4))) for _ in range(size * 2)})[:size]
    return words, list(itertools.accumulate(1 / (rank + 3) for rank in range(len(words))))


def fill(store: Store, runs: int, tokens: int) -> None:
    """Four runs per turn, three turns per conversation, over one year, with two changes of environment."""
    rng = random.Random(2)
    words, weights = vocabulary()

    def text(length: int) -> str:
        return " ".join(rng.choices(words, cum_weights=weights, k=length))

    start = datetime(2026, 1, 1, tzinfo=timezone.utc)
    offsets = [
        tuple(
            itertools.accumulate(
                rng.uniform(0.01, 0.03) for _ in range(rng.randint(tokens // 2, tokens * 3 // 2))
            )
        )
        for _ in range(200)
    ]
    columns = [offset_columns(each) for each in offsets]
    machines = [{"name": "bench", "power": power} for power in ("mains", "battery")]
    environments = [{"openvino": version} for version in ("2026.2", "2026.3", "2026.4")]
    with store.file.writing() as db:
        for facts in machines:
            row = {"id": content_id(facts), "name": "bench", "facts": to_json(facts), "first_seen_at": "x"}
            insert(db, "machines", row)
        for versions in environments:
            row = {
                "id": content_id(versions),
                "versions": to_json(versions),
                "details": "{}",
                "first_seen_at": "x",
            }
            insert(db, "environments", row)
        for target in TARGETS:
            named = {name: getattr(target, name) for name in ("engine", "device", "precision", "model")}
            insert(db, "targets", {"id": content_id(str(target)), **named})
    for first in range(0, runs, 6000):
        with store.file.writing() as db:
            for number in range(first, min(runs, first + 6000)):
                at = start + timedelta(days=365) * (number / runs)
                moment, identity = timestamp(at), f"{number:026d}"
                turn, conversation = f"T{number // 4:025d}", f"C{number // 12:025d}"
                if number % 12 == 0:
                    times = {"created_at": moment, "updated_at": moment}
                    insert(db, "conversations", {"id": conversation, "title": text(4), **times})
                if number % 4 == 0:
                    fixed = {"created_at": moment, "mode": "together", "settings": '{"max_new_tokens":256}'}
                    row = {"id": turn, "conversation_id": conversation, "prompt": text(15), **fixed}
                    insert(db, "turns", row)
                chosen = rng.randrange(len(offsets))
                insert(
                    db,
                    "runs",
                    {
                        "id": identity,
                        "turn_id": turn,
                        "panel": number % 4,
                        "attempt": 1,
                        "target_id": content_id(str(TARGETS[(number // 12 + number) % len(TARGETS)])),
                        "machine_id": content_id(machines[number // 5000 % 2]),
                        "environment_id": content_id(environments[number * 3 // runs]),
                        "contended": number // 4 % 2,
                        "status": "failed" if number % 50 == 0 else "finished",
                        "started_at": moment,
                        "finished_at": moment,
                        "text": text(len(offsets[chosen]) * 3 // 4),
                        "finish_reason": "stop",
                        "prompt_tokens": 40,
                        "output_tokens": len(offsets[chosen]),
                        "prompt_sha256": "ab" * 32,
                        "total_s": offsets[chosen][-1],
                        "load_s": 1.0,
                        "peak_rss_bytes": 10**9,
                        **columns[chosen],
                    },
                )
        print(f"\r{min(runs, first + 6000):,} runs", end="", file=sys.stderr)
    print(file=sys.stderr)


def timed(work: Callable[[], object], repeats: int = 9) -> dict[str, float]:
    """Milliseconds: median and worst."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append((time.perf_counter() - start) * 1e3)
    return {"median_ms": round(statistics.median(times), 2), "worst_ms": round(max(times), 2)}


def searches(store: Store) -> dict[str, dict[str, float]]:
    """A rare word, a common one, a beginning, two words, nothing found, and an emoji that is in no index."""
    words, _ = vocabulary()
    queries = {
        "common word": words[0],
        "rare word": words[-5],
        "beginning of a word": words[40][:2],
        "two words": f"{words[3]} {words[300]}",
        "nothing to find": "zzzzzz",
    }
    found = {
        name: timed(lambda query=query: store.conversations(Filter(query=query)))
        for name, query in queries.items()
    }
    emoji = timed(lambda: store.conversations(Filter(query="🦙")), 3)
    return {**found, "emoji, by reading all texts (no limit set)": emoji}


def saving(store: Store) -> dict[str, dict[str, float]]:
    """Finish runs through the Store while another thread reads as fast as it can."""
    ended = threading.Event()

    def read() -> None:
        while not ended.is_set():
            store.conversations(Filter(engine="transformers"))

    reader = threading.Thread(target=read)
    metrics = RunMetrics(40, None, 256, "ab" * 32, tuple(0.02 * n for n in range(1, 257)), total_s=5.2)
    conversation_id = store.start_conversation("timed")
    turn_id = store.start_turn(conversation_id, "timed", system_prompt=None, mode="together", settings={})
    run_ids = iter(
        [
            store.start_run(turn_id, 0, TARGETS[0], machine={"name": "bench"}, contended=False)
            for _ in range(256)
        ]
    )

    def finish() -> None:
        run_id = next(run_ids)
        outcome = Finished(run_id, "length", "word " * 200, metrics)
        store.finish_run(run_id, outcome, text="word " * 200, metrics=metrics, felt_ttft_s=0.03)

    alone = timed(finish, 128)
    reader.start()
    beside = timed(finish, 128)
    ended.set()
    reader.join()
    return {"alone": alone, "beside a reader": beside}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--tokens", type=int, default=120, help="output tokens of a run, on average")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="leave the filled history there")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.keep or Path(folder) / "arena.sqlite3"
        start = time.perf_counter()
        store = Store(path)
        fill(store, arguments.runs, arguments.tokens)
        filled_s = time.perf_counter() - start
        report = measure(store, Path(folder))
        store.close()
        report |= {
            "runs": arguments.runs,
            "filled_s": round(filled_s, 1),
            "bytes_per_run": round(path.stat().st_size / arguments.runs),
            "offsets_of_1000_tokens_bytes": len(pack_offsets([0.01 * n for n in range(1000)])),
        }
    print(json.dumps(report, indent=2) if arguments.json else as_text(report))
    return 0


def measure(store: Store, folder: Path) -> dict[str, object]:
    """All timings, on a filled history."""
    model = TARGETS[1].model
    picked = Filter(engine="openvino-genai", device="CPU", model=model)

    def trended(metric: str) -> None:
        with store.file.reading() as db:
            trend(db, picked, metric)

    def medians() -> None:
        with store.file.reading() as db:
            db.execute("SELECT * FROM median_metrics").fetchall()

    return {
        "search": searches(store),
        "first page": {
            "all": timed(store.conversations),
            "one engine": timed(lambda: store.conversations(Filter(engine="transformers"))),
            "failed on NPU": timed(lambda: store.conversations(Filter(device="NPU", status="failed"))),
            "one day": timed(lambda: store.conversations(Filter(since="2026-06-01", until="2026-06-01"))),
            "nothing fits": timed(lambda: store.conversations(Filter(engine="none"))),
            "page 100": timed(lambda: store.conversations(offset=4950)),
        },
        "filtered trend": {metric: timed(lambda metric=metric: trended(metric)) for metric in METRICS},
        "saving a finished run": saving(store),
        "all medians (no limit set)": {"view": timed(medians, 1)},
        "export of one target as CSV (no limit set)": {
            "csv": timed(lambda: export_selection(store.file, picked, folder / "x.csv", "csv"), 1)
        },
    }


def as_text(report: dict[str, object]) -> str:
    lines = []
    for name, value in report.items():
        if not isinstance(value, dict):
            lines.append(f"{name}: {value:,}")
            continue
        limit = LIMITS_MS.get(name)
        lines.append(f"{name}" + (f" (limit {limit} ms)" if limit else ""))
        for what, times in value.items():
            missed = "  MISSED" if limit and times["median_ms"] > limit and "no limit" not in what else ""
            lines.append(f"  {what}: {times['median_ms']} ms, worst {times['worst_ms']} ms{missed}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
