"""The certificate authorities of the system, which a process reads only where it uses them."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def default_authorities_unread() -> Iterator[None]:
    """Let contexts that are made in the block trust nothing, instead of what the system trusts.

    aiohttp makes two when it is imported, and reads the authorities for each: 35 ms and 2 MiB of a start. This program
    gives aiohttp a context of its own for each connection.
    """
    ssl.SSLContext.set_default_verify_paths = lambda self: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        # What it hid is the method of the class below.
        del ssl.SSLContext.set_default_verify_paths
