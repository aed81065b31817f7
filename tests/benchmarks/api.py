"""What the API costs: a chat through /v1 against the same chat on the page's own way, and eight streams at once.

`python tests/benchmarks/api.py`. On echo workers (no inference library), so that what is measured is ours: time to
the first word as the caller sees it, decode rate over the stream, and the delays that a client of 100 tok/s sees.
Fails when TTFT grows by more than 5 ms, the decode ratio falls below 0.98, or the delay of a piece exceeds 50 ms at
the 95th percentile.
"""

import asyncio
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import httpx

from engines.protocol import Message, Target, Token
from tests.helpers import echo_engine
from tests.ui.api.conftest import Served, serve
from ui.chat.settings import Settings
from ui.chat.turns import GivenChat

PROMPT = "Count with me, slowly and aloud: " + "one two three four five six seven eight nine ten " * 6
ROUNDS = 12
TOKENS = 60
STREAMS = 8
MOST_TTFT_S, LEAST_RATIO, MOST_DELAY_S = 0.005, 0.98, 0.050


def own_way(served: Served, target: Target) -> tuple[float, float]:
    """(TTFT, tok/s) as code in this process sees it."""
    seen: list[float] = []

    def hear(event: object) -> None:
        if isinstance(event, Token):
            seen.append(time.perf_counter())

    started = time.perf_counter()
    given = GivenChat((Message("user", PROMPT),), "api", hear)
    turn = served.turns.send(PROMPT, [(1, target)], Settings(max_new_tokens=TOKENS), given=given)
    assert turn.wait(60)
    return seen[0] - started, (len(seen) - 1) / (seen[-1] - seen[0])


def through_the_api(served: Served, client: httpx.Client, target: Target) -> tuple[float, float]:
    """(TTFT, tok/s) as a program on this machine sees it."""
    document = {
        "model": f"{target.spelling}@demo",
        "stream": True,
        "max_tokens": TOKENS,
        "messages": [{"role": "user", "content": PROMPT}],
    }
    seen: list[float] = []
    started = time.perf_counter()
    with client.stream("POST", f"{served.base}/chat/completions", json=document) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {") and '"content":"' in line and '"role"' not in line:
                seen.append(time.perf_counter())
    return seen[0] - started, (len(seen) - 1) / (seen[-1] - seen[0])


async def eight_streams(served: Served) -> list[float]:
    """How long after its time each piece of eight streams at 100 tok/s came, by the worker's own offsets."""

    async def one(client: httpx.AsyncClient, number: int) -> list[float]:
        document = {
            "model": f"echo-{number}/CPU/100@demo",
            "stream": True,
            "max_tokens": 200,
            "messages": [{"role": "user", "content": PROMPT * 3}],
        }
        seen, offsets = [], []
        headers = {"X-Backend-Arena": "token-offsets"}
        async with client.stream(
            "POST", f"{served.base}/chat/completions", json=document, headers=headers
        ) as answer:
            async for line in answer.aiter_lines():
                now = time.perf_counter()
                if line.startswith("data: {"):
                    chunk = json.loads(line[6:])
                    if chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                        seen.append(now)
                    offsets = chunk.get("timings", {}).get("token_offsets_s", offsets)
        span = [offset - offsets[0] for offset in offsets[: len(seen)]]
        late = [(at - seen[0]) - due for at, due in zip(seen, span, strict=False)]
        return [delay - min(late) for delay in late]

    async with httpx.AsyncClient(timeout=300) as client:
        return [
            delay
            for found in await asyncio.gather(*(one(client, n) for n in range(STREAMS)))
            for delay in found
        ]


def main() -> int:
    """Measure, print, and say by the exit status whether it is good enough."""
    with tempfile.TemporaryDirectory() as folder:
        specs = tuple(dataclasses.replace(echo_engine.SPEC, name=f"echo-{n}") for n in range(STREAMS))
        server = serve(Path(folder), specs)
        served = next(server)
        target = Target("echo-0", "CPU", "100")
        for spec in specs:  # loaded first
            own_way(served, Target(spec.name, "CPU", "100"))
        with httpx.Client(timeout=60) as client:
            own_way(served, target), through_the_api(served, client, target)
            pairs = [
                (own_way(served, target), through_the_api(served, client, target)) for _ in range(ROUNDS)
            ]
        delays = sorted(asyncio.run(eight_streams(served)))
        next(server, None)
    added_s = statistics.median(api[0] for _, api in pairs) - statistics.median(own[0] for own, _ in pairs)
    ratio = statistics.median(api[1] for _, api in pairs) / statistics.median(own[1] for own, _ in pairs)
    p95_s = delays[int(0.95 * len(delays))]
    print(f"TTFT {1000 * added_s:+.1f} ms, decode ratio {ratio:.3f}")
    print(f"{STREAMS} streams: {len(delays)} pieces, p95 delay {1000 * p95_s:.1f} ms")
    good = added_s <= MOST_TTFT_S and ratio >= LEAST_RATIO and p95_s <= MOST_DELAY_S
    print("good" if good else "NOT good enough")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
