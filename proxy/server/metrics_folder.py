"""A folder in which the metrics of several workers meet."""

from __future__ import annotations

import contextlib
import logging
import socket
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

#: Where folders are looked for whose names are short. The address of a Unix socket holds about a hundred bytes, and
#: `TMPDIR` may be longer; some file systems of containers have no sockets at all.
SHORT_PLACES = ("/tmp", "/var/tmp", "/dev/shm")
#: As long as the name of a worker's socket can be.
_LONGEST_NAME = f"{2**22}-{'0' * 8}.sock"
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def metrics_folder(places: Sequence[str] | None = None) -> Iterator[Path | None]:
    """Make a folder for Unix sockets that only this user opens; None, and a warning, if no place takes one.

    Args:
        places: where it may be, the best one first; without, where the system keeps temporary files.
    """
    problem: OSError | None = None
    with contextlib.ExitStack() as stack:
        for place in (None, *SHORT_PLACES) if places is None else places:
            try:
                folder = _make_folder(stack, place)
            except OSError as failure:
                problem = problem or failure
            else:
                yield folder
                return
    fields = {"problem": problem and (problem.strerror or str(problem))}
    _log.warning("no folder for temporary files: /metrics is that of one worker", extra={"log_fields": fields})
    yield None


def _make_folder(stack: contextlib.ExitStack, place: str | None) -> Path:
    """Make a folder that lasts as long as `stack`.

    Raises:
        OSError: there can be none, or no worker could bind its socket there.
    """
    with contextlib.ExitStack() as own:
        name = own.enter_context(
            tempfile.TemporaryDirectory(prefix="fal-proxy-", dir=place, ignore_cleanup_errors=True)
        )
        path = Path(name, _LONGEST_NAME)
        with socket.socket(socket.AF_UNIX) as tried:
            tried.bind(str(path))
        path.unlink()
        stack.push(own.pop_all())
    return Path(name)
