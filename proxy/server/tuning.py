"""Sets the interpreter up for a server that answers many small calls."""

from __future__ import annotations

import sys

from proxy.server.garbage import freeze_survivors

#: How long a thread that has work (a database's, for one) waits for the one that runs. Python's own 5 ms are several
#: times what a call takes.
SWITCH_SECONDS = 0.0002


def tune_runtime() -> None:
    """Let garbage collections look at what calls leave behind, and let threads of databases go on soon.

    The C library's allocator is set by variables of the environment, in the Dockerfile.
    """
    freeze_survivors()
    sys.setswitchinterval(SWITCH_SECONDS)
