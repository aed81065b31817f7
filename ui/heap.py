"""Memory that is no longer used goes back to the system at once.

glibc takes a large buffer from the system by itself and gives it back when it is freed, but stops doing so: the
first buffer that is freed raises the mark for what counts as large, up to 32 MB. From then on pages, replies and
exports of some hundred kilobytes lie between small things in each thread's heap and leave holes that nobody else
can have: 2,000 opened pages took the process from 180 to 370 MB, of which 50 were in use. Setting the mark, to the
very value it starts with, keeps it where it is.
"""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""`M_TRIM_THRESHOLD` and `M_MMAP_THRESHOLD` of <malloc.h>."""
LARGE_BYTES = 128 * 1024


def give_back_at_once() -> bool:
    """For the whole process, from now on; False where the C library is another one, and manages by itself."""
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has none
        return False
    return all(mallopt(option, LARGE_BYTES) for option in (_MMAP_THRESHOLD, _TRIM_THRESHOLD))
