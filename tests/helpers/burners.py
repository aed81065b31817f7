"""A program that is not ours and keeps one core busy."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def burner(cores: int = 1) -> Iterator[list[int]]:
    """As many busy loops as `cores`, each a process of its own that has begun to burn; their process ids."""
    code = "print('burning', flush=True)\nwhile True: pass"
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(cores)
    ]
    try:
        for process in processes:
            assert process.stdout.readline() == "burning\n"
        yield [process.pid for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdout.close()
