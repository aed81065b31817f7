"""Whether a quiet run stays unstamped: twenty runs of the bundled model with nothing else going on.

    python -m tests.benchmarks.quiet [--runs 20] [--engine openvino-genai] [--data-dir DIR]

Each through the whole way of a prompt, as the page sends it. Wants none stamped, and says what was seen of each that
is: on a machine where other programs work meanwhile the stamps are right and this is the wrong moment.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from app import build
from engines.protocol import Target
from ui.chat.settings import Settings


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--engine", default="openvino-genai")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--data-dir", type=Path)
    arguments = parser.parse_args()
    target = Target(arguments.engine, "CPU", arguments.precision)
    stamped, cores = 0, []
    with tempfile.TemporaryDirectory() as temporary:
        arena = build(arguments.data_dir or Path(temporary))
        try:
            settings = Settings(max_new_tokens=200)
            arena.turns.send("warm", [(1, target)], settings).wait(300)
            for number in range(arguments.runs):
                turn = arena.turns.send(
                    f"{number}. Tell me a story about a lighthouse.", [(1, target)], settings
                )
                turn.wait(120)
                view = turn.runs[0].view()
                cores.append(view.other_load.foreign_cpu_cores)
                if not view.alone:
                    stamped += 1
                    print(f"run {number + 1}: {view.other_load}", file=sys.stderr)
                time.sleep(0.2)
        finally:
            arena.close()
    print(
        f"{arguments.runs - stamped} of {arguments.runs} unstamped; other programs took "
        f"{statistics.median(cores):.3f} cores (median), {max(cores):.3f} at most"
    )
    return 1 if stamped else 0


if __name__ == "__main__":
    sys.exit(main())
