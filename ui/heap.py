"""Memory: what is no longer used goes back to the system at once, and what stays is not searched for what could go.

glibc takes a large buffer from the system by itself and gives it back when it is freed, but stops doing so: the
first buffer that is freed raises the mark for what counts as large, up to 32 MB. From then on pages, replies and
exports of some hundred kilobytes lie between small things in each thread's heap and leave holes that nobody else
can have: 2,000 opened pages took the process from 180 to 370 MB, of which 50 were in use. Setting the mark, to the
very value it starts with, keeps it where it is.
"""

from __future__ import annotations

import ctypes
import gc
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


def leave_out_of_collections() -> None:
    """What there is now, modules and the page's components above all, is there to stay.

    Python's search for cycles that nobody can reach any more (its full collection) looks at every object, whenever a
    quarter more than last time have been made: in the middle of a prompt, say, and everything waits. For the 230,000
    objects of the page that took 0.3 s on a slow computer. Those are left out from now on (`gc.freeze`).
    """
    gc.freeze()
