"""The interpreter and its memory, set for a server that answers many small calls."""

from __future__ import annotations

import ctypes
import gc
import sys

#: New objects before the garbage collector looks: those of some twenty calls at once are no garbage yet.
GARBAGE_THRESHOLD = 20_000
#: How long a thread that has work (a database's, for one) waits for the one that runs. Python's own 5 ms are several
#: times what a call takes.
SWITCH_SECONDS = 0.0002
#: glibc's mallopt(3): when memory goes back to the system (M_TRIM_THRESHOLD), how much more than is wanted comes from
#: it (M_TOP_PAD), and from what size on each block comes and goes by itself (M_MMAP_THRESHOLD).
MALLOC_BYTES = {-1: 8 * 1024 * 1024, -2: 1024 * 1024, -3: 4 * 1024 * 1024}


def tune_runtime() -> None:
    """Let the garbage collector look at what calls leave behind, and neither so often nor at what stays for good; let
    a database's thread go on soon after each of its statements; and do not give the system back, again and again, the
    memory that the next piece of a file needs."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD, 20, 20)
    sys.setswitchinterval(SWITCH_SECONDS)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, size in MALLOC_BYTES.items():
            mallopt(option, size)
