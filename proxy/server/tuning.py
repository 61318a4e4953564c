"""The interpreter, set for a server that answers many small calls."""

from __future__ import annotations

import sys

from proxy.server.garbage import freeze_survivors

#: How long a thread that has work (a database's, for one) waits for the one that runs. Python's own 5 ms are several
#: times what a call takes.
SWITCH_SECONDS = 0.0002


def tune_runtime() -> None:
    """Let the garbage collector look at what calls leave behind, and not at what stays; let a database's thread go on
    soon after each of its statements.

    How the C library's allocator keeps memory is set in its environment, in the Dockerfile."""
    freeze_survivors()
    sys.setswitchinterval(SWITCH_SECONDS)
