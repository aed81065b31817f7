"""Moves a child's protocol to private descriptors, so that what native libraries print cannot land in it."""

from __future__ import annotations

import os
import sys
from typing import BinaryIO


def take_over_stdio() -> tuple[BinaryIO, BinaryIO]:
    """Move the protocol to private descriptors; 0 becomes the null device and 1 goes to stderr, the log.

    On Windows a thread blocked on a piped stdin can hang an import (numpy#24290), and a library's printf must
    not land between two protocol lines anywhere.
    """
    if sys.platform == "win32":
        import msvcrt

        for descriptor in (0, 1):
            msvcrt.setmode(descriptor, os.O_BINARY)
    commands = os.fdopen(os.dup(0), "rb")
    events = os.fdopen(os.dup(1), "wb", buffering=0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    if sys.platform == "win32":
        _set_windows_handles()
    sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115, PTH123 - lives as long as the process
    sys.stdout = sys.stderr
    return commands, events


def _set_windows_handles() -> None:
    if sys.platform != "win32":
        return
    import ctypes
    import msvcrt

    for number, descriptor in ((-10, 0), (-11, 1)):  # STD_INPUT_HANDLE, STD_OUTPUT_HANDLE
        ctypes.windll.kernel32.SetStdHandle(number, msvcrt.get_osfhandle(descriptor))
