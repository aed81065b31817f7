"""Cold start of the page against three lines of Gradio in the same environment, alternating in one run.

    python tests/benchmarks/start.py [--repeats 5]

Reports the time from process start to the first HTTP 200 (median and spread of each, and their ratio; the aim is
at most 1.3) and the resident memory of the page's process (at most 300 MB).
"""

import argparse
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
THREE_LINES = """import gradio as gr, sys
with gr.Blocks() as demo: gr.Textbox()
demo.launch(server_port=int(sys.argv[1]), quiet=True)"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def time_to_200(command: list[str], port: int) -> tuple[float, int]:
    """Seconds from start to HTTP 200, and resident bytes of the process a second later."""
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as answer:
                    answer.read()
                    elapsed_s = time.perf_counter() - started
                    break
            except OSError:
                if process.poll() is not None:
                    raise SystemExit(f"{command} ended with {process.returncode}") from None
                time.sleep(0.02)
        time.sleep(1)
        return elapsed_s, psutil.Process(process.pid).memory_info().rss
    finally:
        process.terminate()
        process.wait(30)


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--repeats", type=int, default=5)
    repeats = arguments.parse_args().repeats
    ours, theirs, resident = [], [], []
    with tempfile.TemporaryDirectory() as data:
        for repeat in range(repeats + 1):  # the first pair warms the disk cache and does not count
            port = free_port()
            app = [sys.executable, "app.py", "--no-browser", "--port", str(port), "--data-dir", data]
            app_s, rss = time_to_200(app, port)
            port = free_port()
            bare_s, _ = time_to_200([sys.executable, "-c", THREE_LINES, str(port)], port)
            print(f"{'warm-up' if repeat == 0 else repeat}: app {app_s:.2f} s, bare Gradio {bare_s:.2f} s")
            if repeat:
                ours.append(app_s)
                theirs.append(bare_s)
                resident.append(rss)
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    print(f"app        median {statistics.median(ours):.2f} s  ({min(ours):.2f}–{max(ours):.2f})")
    print(f"bare       median {statistics.median(theirs):.2f} s  ({min(theirs):.2f}–{max(theirs):.2f})")
    print(f"ratio      median {statistics.median(ratios):.2f}  ({ratios[0]:.2f}–{ratios[-1]:.2f}), aim ≤ 1.3")
    print(f"UI process {statistics.median(resident) / 1e6:.0f} MB resident, aim ≤ 300 MB")


if __name__ == "__main__":
    main()
