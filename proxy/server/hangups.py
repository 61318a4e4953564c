"""SIGHUP asks for a reload, and never ends a process: it waits until the process can heed it.

A signal that is blocked stays pending, and a process inherits what is blocked from the one that starts it. So none is
lost, and none kills a worker that has not come as far as its event loop.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator


def hold_hangups() -> None:
    """Let each SIGHUP wait, from here on."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})


def release_hangups() -> None:
    """Let SIGHUP through, and one that waited: there is a handler for it now."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})


@contextlib.contextmanager
def hangups_held() -> Iterator[None]:
    """Let SIGHUP wait while a process is started, and in that process from its start."""
    hold_hangups()
    try:
        yield
    finally:
        release_hangups()
