"""How many files this process may have open, and how many connections that allows."""

from __future__ import annotations

import contextlib
import resource
import sys

#: What a process needs beside its connections: stores, listeners, modules, and answers to connections it refuses.
RESERVED_FILES = 64
MIN_CONNECTIONS = 8


def raise_file_limit() -> None:
    """Raise the limit of open files to what this process may set it to; the common 1024 is there for `select` alone."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        # Some systems have a bound of their own below the hard limit: then the soft one stays.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def file_limit() -> int:
    """Return the number of files this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def max_connections_within(files: int) -> int:
    """Return the connections that a limit of open files allows, as a call may take a second file for its way to fal."""
    return max(MIN_CONNECTIONS, (files - RESERVED_FILES) // 2)
