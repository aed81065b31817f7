"""Whether a worker grows: its memory and its speed over 200 generations on each engine with the bundled model.

    python -m tests.benchmarks.leaks [--engine NAME …] [--generations 200] [--json]

Each generation is a conversation of its own, so nothing may be kept from one to the next. The slope is that of a
straight line through the worker's resident set after each generation, the first quarter (pools and caches fill) left
out. Wants:

    slope                              <= 20 kB a generation
    median decode rate, last quarter
    against the second                 >= 0.9

Also what the sampler costs: decode rate with it against without, the two alternating (`--sampler`; wants >= 0.99).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from engines.environments.environments import Environments
from engines.models.library import ModelLibrary
from engines.protocol import Finished, GenerationRequest, Message, Target
from engines.runtime.manager import EngineManager

GENERATIONS, TOKENS = 200, 32
MOST_SLOPE_BYTES, LEAST_RATE, LEAST_WITH_SAMPLER = 20_000, 0.9, 0.99
ROUNDS, ROUND_TOKENS = 24, 400


def slope(values: list[float]) -> float:
    """Least squares: how much a value grows from one to the next."""
    middle, mean = (len(values) - 1) / 2, statistics.fmean(values)
    spread = sum((at - middle) ** 2 for at in range(len(values)))
    return sum((at - middle) * (value - mean) for at, value in enumerate(values)) / spread


def generate(lease, text: str, tokens: int) -> Finished:
    request = GenerationRequest(
        (Message("user", text),), max_new_tokens=tokens, ignore_eos=True, reuse_kv_cache=False
    )
    outcome = lease.generate("run", request, lambda _event: None)
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


def sampler_cost(manager: EngineManager, target: Target) -> float:
    """Median decode rate with the sampler on, divided by that with it off; rounds alternate."""
    rates: dict[bool, list[float]] = {True: [], False: []}
    with manager.lease(target) as lease:
        generate(lease, "warm", 16)
        take = manager.sampler.sample
        for number in range(ROUNDS):
            on = number % 2 == 0
            manager.sampler.sample = take if on else lambda: None
            if on:
                manager.sampler.look()
            rates[on].append(generate(lease, "Tell me a story.", ROUND_TOKENS).metrics.decode_tok_s)
        manager.sampler.sample = take
    return statistics.median(rates[True]) / statistics.median(rates[False])


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
                ratios = {target.spelling: sampler_cost(manager, target) for target in targets}
                print(json.dumps({name: round(ratio, 4) for name, ratio in ratios.items()}, indent=1))
                return 0 if all(ratio >= LEAST_WITH_SAMPLER for ratio in ratios.values()) else 1
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
