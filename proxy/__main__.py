"""`python -m proxy`, and the command `fal-proxy`."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable

from proxy.server.garbage import collections_paused

#: Why a file or a device takes no more output.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
#: Commands whose output is nothing but a log.
_SERVERS = {"serve", "dev", "sandbox"}


def run() -> None:
    """Run the command line; a plain `serve`, as the image starts it, without loading the parser and other commands."""
    _open_closed_streams()
    try:
        if sys.argv[1:] == ["serve"]:
            with collections_paused():
                from proxy.serving import serve
            sys.exit(serve())
        with collections_paused():
            from proxy.cli import main
        _run_command(main)
    except KeyboardInterrupt:
        # Ctrl+C before the parser or the server heeds it; the parser ends with this code too.
        sys.exit(128 + signal.SIGINT)


def _open_closed_streams() -> None:
    """Open what the caller has closed, as a database or a socket would get its number and what is printed.

    A command whose output cannot be read does nothing: it may print a key that is shown once. A server goes on.
    """
    has_output = sys.stdout is not None
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free.
            os.open(os.devnull, os.O_RDWR)
    # They are None if they were closed, and what is printed to None goes to stdout.
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)
    if not has_output and not {*sys.argv[1:2]} & _SERVERS:
        sys.exit("the output cannot be written (stdout is closed)")


def _run_command(main: Callable[[], object]) -> None:
    """Run a command, also where its output cannot be written."""
    try:
        try:
            main()
        finally:
            # Here, as the end of the program would find the problem too late to say what it is.
            if sys.stdout is not None:
                sys.stdout.flush()
    except OSError as problem:
        if problem.errno not in (*_FULL, errno.EPIPE) or problem.filename is not None:
            raise
        # What is left would be written again at the end.
        if sys.stdout is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1 if problem.errno == errno.EPIPE else f"the output cannot be written ({problem.strerror})")


if __name__ == "__main__":
    run()
