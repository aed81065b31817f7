"""Listening to what a native library prints while it loads: some tell where they run nowhere else."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping


@contextlib.contextmanager
def overhearing(
    heard: list[str], descriptor: int, environment: Mapping[str, str] | None = None
) -> Iterator[None]:
    """What is printed to a file descriptor meanwhile goes to `heard` (one text, at the end) and not further.

    It comes from C++, so the descriptor itself is moved. `environment` is set for as long. When the loading fails,
    everything goes on to where it would have gone: it may say why.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    wanted = dict(environment or {})
    before = {name: os.environ.get(name) for name in wanted}
    kept = os.dup(descriptor)
    with tempfile.TemporaryFile() as aside:
        os.environ.update(wanted)
        os.dup2(aside.fileno(), descriptor)
        try:
            yield
        except BaseException:
            aside.seek(0)
            os.write(kept, aside.read())
            raise
        finally:
            os.dup2(kept, descriptor)
            os.close(kept)
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
        aside.seek(0)
        heard.append(aside.read().decode("utf-8", "replace"))
