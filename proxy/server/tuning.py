"""The interpreter, set for a server that answers many small calls."""

from __future__ import annotations

import gc
import sys

#: New objects before the garbage collector looks: those of some twenty calls at once are no garbage yet.
GARBAGE_THRESHOLD = 20_000
#: How long a thread that has work (a database's, for one) waits for the one that runs. Python's own 5 ms are several
#: times what a call takes.
SWITCH_SECONDS = 0.0002


def tune_runtime() -> None:
    """Let the garbage collector look at what calls leave behind, and neither so often nor at what stays for good; let
    a database's thread go on soon after each of its statements.

    How the C library's allocator keeps memory is set in its environment, in the Dockerfile."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD, 20, 20)
    sys.setswitchinterval(SWITCH_SECONDS)
