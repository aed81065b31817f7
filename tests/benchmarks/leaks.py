"""Whether a worker grows: its memory and its speed over 200 generations on each engine with the bundled model.

    python -m tests.benchmarks.leaks [--engine NAME …] [--generations 200] [--json]

Each generation is a conversation of its own, so nothing may be kept from one to the next. The slope is that of a
straight line through the worker's resident set after each generation, the first quarter (pools and caches fill) left
out. Wants:

    slope                              <= 20 kB a generation
    median decode rate, last quarter
    against the second                 >= 0.9

Also what the sampler costs (`--sampler`): decode rate with it against without, the two alternating every two
seconds while the worker decodes (wants >= 0.99, less the standard error), and its own processor time (wants
<= 1 % of a core).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from engines.environments.environments import Environments
from engines.models.library import ModelLibrary
from engines.protocol import Finished, GenerationRequest, Message, Target, Token
from engines.runtime.manager import EngineManager

GENERATIONS, TOKENS = 200, 32
MOST_SLOPE_BYTES, LEAST_RATE, LEAST_WITH_SAMPLER = 20_000, 0.9, 0.99
MOST_CORES = 0.01
SAMPLER_S, SPAN_S, ROUND_TOKENS = 120.0, 2.0, 400
"""How long the sampler is tried on each engine, how long it stays on and off, and tokens of each generation."""


def slope(values: list[float]) -> float:
    """Least squares: how much a value grows from one to the next."""
    middle, mean = (len(values) - 1) / 2, statistics.fmean(values)
    spread = sum((at - middle) ** 2 for at in range(len(values)))
    return sum((at - middle) * (value - mean) for at, value in enumerate(values)) / spread


def generate(lease, text: str, tokens: int, on_event=lambda _event: None) -> Finished:
    request = GenerationRequest(
        (Message("user", text),), max_new_tokens=tokens, ignore_eos=True, reuse_kv_cache=False
    )
    outcome = lease.generate("run", request, on_event)
    assert isinstance(outcome, Finished), outcome
    return outcome


def leaks(manager: EngineManager, target: Target, generations: int) -> dict:
    """Resident bytes and decode rate after each generation, and what they come to."""
    resident, rates = [], []
    with manager.lease(target) as lease:
        for number in range(generations):
            finished = generate(lease, f"{number}. Tell me a story about a lighthouse.", TOKENS)
            rates.append(finished.metrics.decode_tok_s)
            resident.append(manager.state(target).rss_bytes)
    quarter = generations // 4
    steady = resident[quarter:]
    return {
        "target": target.spelling,
        "rss_start_mb": resident[0] / 1e6,
        "rss_end_mb": resident[-1] / 1e6,
        "slope_bytes": slope(steady),
        "rate_ratio": statistics.median(rates[-quarter:]) / statistics.median(rates[quarter : 2 * quarter]),
    }


def sampler_cost(manager: EngineManager, target: Target) -> dict:
    """Decode rate while the sampler is on, divided by that while it is off.

    It goes on and off every few seconds while the worker decodes on and on, and each span is compared with its
    neighbour only: this machine's speed wanders by more from minute to minute than the sampler may cost.
    """
    take, began = manager.sampler.sample, time.monotonic()
    spans: dict[int, list[float]] = {}
    processor_s = [0.0]

    def span(now: float) -> int:
        return int((now - began) / SPAN_S)

    def sample() -> None:
        if span(time.monotonic()) % 2 == 0:
            before = time.thread_time()
            take()
            processor_s[0] += time.thread_time() - before

    last = [float("inf")]

    def on_event(event) -> None:
        now = time.monotonic()
        if isinstance(event, Token):
            if now > last[0] and span(now) == span(last[0]):
                spans.setdefault(span(now), []).append(now - last[0])
            last[0] = now

    manager.sampler.sample = sample
    try:
        with manager.lease(target) as lease:
            generate(lease, "warm", 16)
            while time.monotonic() - began < SAMPLER_S:
                manager.sampler.look()
                last[0] = float("inf")  # what lies between two runs is no decoding
                generate(lease, "Tell me a story.", ROUND_TOKENS, on_event)
    finally:
        manager.sampler.sample = take
    rates = {at: len(times) / sum(times) for at, times in spans.items() if at and sum(times) > SPAN_S / 2}
    ratios = [rates[at] / rates[at + 1] for at in rates if at % 2 == 0 and at + 1 in rates]
    error = statistics.stdev(ratios) / len(ratios) ** 0.5
    return {
        "on / off": round(statistics.median(ratios), 4),
        "standard error": round(error, 4),
        "pairs": len(ratios),
        "cores": round(processor_s[0] / (SAMPLER_S / 2), 4),
    }


def usable(manager: EngineManager, names: list[str] | None) -> list[Target]:
    """One target on the CPU for every engine that has one here."""
    targets = []
    for name, found in manager.availability().items():
        spec = manager.specs[name]
        status = next(
            (status for status in found.device_status if status.device == "CPU" and status.ok), None
        )
        if status is not None and (not names or name in names):
            targets.append(Target(name, "CPU", (status.precisions or spec.precisions)[0]))
    return targets


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", action="append", help="default: all that run here")
    parser.add_argument("--generations", type=int, default=GENERATIONS)
    parser.add_argument("--data-dir", type=Path, help="keep the conversions here")
    parser.add_argument("--sampler", action="store_true", help="what the sampler costs instead")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.data_dir or Path(temporary)
        manager = EngineManager(work, ModelLibrary(work), Environments(work))
        try:
            targets = usable(manager, arguments.engine)
            if arguments.sampler:
                costs = {target.spelling: sampler_cost(manager, target) for target in targets}
                print(json.dumps(costs, indent=1))
                return 0 if all(cheap(cost) for cost in costs.values()) else 1
            results = []
            for target in targets:
                results.append(leaks(manager, target, arguments.generations))
                print(describe(results[-1]), file=sys.stderr, flush=True)
                manager.unload(target)
        finally:
            manager.shutdown()
    if arguments.json:
        print(json.dumps(results, indent=1))
    return 0 if all(passed(result) for result in results) else 1


def cheap(cost: dict) -> bool:
    return cost["on / off"] + cost["standard error"] >= LEAST_WITH_SAMPLER and cost["cores"] <= MOST_CORES


def passed(result: dict) -> bool:
    return result["slope_bytes"] <= MOST_SLOPE_BYTES and result["rate_ratio"] >= LEAST_RATE


def describe(result: dict) -> str:
    return (
        f"{result['target']:28s} {result['rss_start_mb']:7.1f} -> {result['rss_end_mb']:7.1f} MB, slope "
        f"{result['slope_bytes'] / 1e3:+7.2f} kB a generation, decode rate {result['rate_ratio']:.2f} of the start; "
        f"{'ok' if passed(result) else 'MISSED'}"
    )


if __name__ == "__main__":
    sys.exit(main())
