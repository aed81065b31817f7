"""What `setup` tells while it works, as a terminal gets it."""

import io

from engines.protocol import Progress
from ui.cli.setup import _ProgressLine
from ui.cli.terminal import harmless_output


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_whole_lines_and_no_marks_of_control_characters(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with harmless_output():
        tell = _ProgressLine()
        tell(Progress("set-up", "Fetching packages: numpy", 0.2))
        tell(Progress("set-up", "Fetching packages: torch", 0.21))  # too soon for another line
        tell(Progress("set-up", "Intel NPU is ready", 1.0))
    assert terminal.getvalue() == " 20% Fetching packages: numpy\n100% Intel NPU is ready\n"
