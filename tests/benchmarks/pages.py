"""What 10,000 opened and closed pages leave behind in the app's process: its memory after every tenth of them.

Each page does what a browser does: it fetches the page, joins the queue for the load event, reads its events, holds
the heartbeat and drops it. At the end 2,000 heartbeats alone are opened and dropped, as a hostile client would.

Run: python -m tests.benchmarks.pages [--pages 10000] [--check]
With --check the exit status is 1 when the second half of the pages adds more than 5 MB.
"""

import argparse
import asyncio
import json
import multiprocessing
import sys
import tempfile
from pathlib import Path

import psutil

AT_ONCE = 8
MOST_GROWTH_MB = 5.0
"""Of the second half of the pages: the first fills what is kept within bounds."""


def serve(data_dir: str, pipe) -> None:
    from tests.ui.conftest import serve_page
    from ui.heap import give_back_at_once

    give_back_at_once()
    demo, arena = serve_page(Path(data_dir))
    load = next(i for i, f in demo.fns.items() if f.fn and f.fn.__name__ == "_load")
    pipe.send((arena.address, load))
    pipe.recv()
    demo.close(verbose=False)
    arena.manager.shutdown()
    arena.store.close()


async def open_and_close(host: str, port: int, load: int, number: int, whole: bool) -> None:
    """One page's life; every connection is ours to drop."""
    session = f"page{number}"

    async def ask(method: str, path: str, body: bytes = b"", until: bytes | None = None) -> bytes:
        reader, writer = await asyncio.open_connection(host, port)
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        said = b""
        while piece := await reader.read(65536):
            said = (said + piece)[-200_000:]
            if until is not None and until in said:
                break
        writer.close()
        return said

    if whole:
        await ask("GET", "/")
        body = json.dumps({"data": [""], "fn_index": load, "session_hash": session}).encode()
        await ask("POST", "/gradio_api/queue/join", body)
        await ask("GET", f"/gradio_api/queue/data?session_hash={session}", until=b"process_completed")
    await ask("GET", f"/gradio_api/heartbeat/{session}", until=b"ALIVE")


async def many(address: str, load: int, numbers: range, whole: bool) -> None:
    host, port = address.removeprefix("http://").rstrip("/").split(":")
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        async with slots:
            await open_and_close(host, int(port), load, number, whole)

    await asyncio.gather(*(one(number) for number in numbers))


def measure(pages: int) -> dict[str, float]:
    """Resident memory of the app's process in MB at each stage."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as data_dir:
        server = context.Process(target=serve, args=(data_dir, there))
        server.start()
        address, load = here.recv()
        process = psutil.Process(server.pid)
        figures = {"start_mb": process.memory_info().rss / 1e6}
        stages = [
            (f"after_{pages * (i + 1) // 10}_mb", range(pages * i // 10, pages * (i + 1) // 10))
            for i in range(10)
        ]
        for name, numbers in [*stages, ("after_heartbeats_mb", range(pages, pages + 2000))]:
            asyncio.run(many(address, load, numbers, whole=name != "after_heartbeats_mb"))
            figures[name] = process.memory_info().rss / 1e6
            print(f"{name} {figures[name]:.1f}", file=sys.stderr, flush=True)
        figures["second_half_mb"] = figures[f"after_{pages}_mb"] - figures[f"after_{pages // 2}_mb"]
        here.send("end")
        server.join(30)
        if server.is_alive():
            server.terminate()
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pages", type=int, default=10_000)
    parser.add_argument("--check", action="store_true", help="fail when memory goes on growing")
    arguments = parser.parse_args()
    figures = measure(arguments.pages)
    print(json.dumps({name: round(value, 1) for name, value in figures.items()}, indent=2))
    return 1 if arguments.check and figures["second_half_mb"] > MOST_GROWTH_MB else 0


if __name__ == "__main__":
    sys.exit(main())
