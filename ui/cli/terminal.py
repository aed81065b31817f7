"""What commands print is shown by a terminal, which obeys control characters; it gets none but line ends and tabs.

Every command's output goes through here, whoever wrote the text: a model, a file, a server, another machine's export.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from storage.exchange.harmless import for_terminal


class HarmlessStream:
    """A text stream that shows control characters instead of sending them."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(for_terminal(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def harmless_output() -> Iterator[None]:
    """Standard output and errors made harmless for as long as a command runs.

    Where there is none (pythonw, a service, `>&-`), what is written goes nowhere: `print` would take the other one.
    """
    with contextlib.ExitStack() as opened:
        out, errors = (
            stream or opened.enter_context(open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123
            for stream in (sys.stdout, sys.stderr)
        )
        opened.enter_context(contextlib.redirect_stdout(HarmlessStream(out)))  # type: ignore[type-var]
        opened.enter_context(contextlib.redirect_stderr(HarmlessStream(errors)))  # type: ignore[type-var]
        yield
