"""What commands print is shown by a terminal, which obeys control characters; it gets none but line ends and tabs.

Every command's output goes through here, whoever wrote the text: a model, a file, a server, another machine's export.
"""

from __future__ import annotations

import contextlib
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
    """Standard output and errors made harmless for as long as a command runs."""
    out, errors = sys.stdout, sys.stderr
    with (
        contextlib.redirect_stdout(HarmlessStream(out)),  # type: ignore[type-var]
        contextlib.redirect_stderr(HarmlessStream(errors)),  # type: ignore[type-var]
    ):
        yield
