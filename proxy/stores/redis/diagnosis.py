"""What an error of Redis means, in words for the operator who mends it."""

from __future__ import annotations

import socket
import ssl

from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)

from proxy.errors import StoreUnavailable

_SILENT = "do not answer; try again shortly"
_FOR_CALLERS = f"The proxy's counters {_SILENT}."
_KINDS: tuple[tuple[type[BaseException], str], ...] = (
    (AuthenticationError, "refuse the user or the password: correct PROXY_REDIS_URL"),
    (NoPermissionError, "do not let this user do what the proxy needs: give it the commands and keys that it lacks"),
    (OutOfMemoryError, "are full: raise maxmemory of Redis"),
    (ReadOnlyError, "take no writes: let PROXY_REDIS_URL lead to the primary server"),
    (BusyLoadingError, "still load their data; try again shortly"),
    (ClusterDownError, "are in a cluster that is down: mend it"),
    (UnicodeError, "have no address: correct the host in PROXY_REDIS_URL"),
    (socket.gaierror, "have no address: correct the host in PROXY_REDIS_URL"),
    (ssl.SSLError, "cannot be reached with TLS: correct rediss:// and the certificates in PROXY_REDIS_URL"),
    (ConnectionRefusedError, "are not there: correct the host and port in PROXY_REDIS_URL, or start Redis"),
)
#: By the first words of an answer that has no class of its own.
_ANSWERS = {
    "MISCONF": "take no writes, as Redis cannot save its data: make room on its disk, or turn saving off",
    "DB index": "have no database of this number: correct it in PROXY_REDIS_URL",
    "unknown command": "lack a command: take Redis 5 or newer, or Valkey, and rename no command",
}


def diagnose(error: BaseException) -> StoreUnavailable:
    """Return what to raise for an error of the driver: without its text, as that may name the server."""
    return StoreUnavailable(f"The proxy's counters {_describe(error)}.", for_callers=_FOR_CALLERS)


def _describe(error: BaseException) -> str:
    # The driver has one error for all that keeps a connection from being made; the reason is behind it.
    chain = [one for one in (error, error.__cause__, error.__context__) if one is not None]
    for kind, what in _KINDS:
        if any(isinstance(one, kind) for one in chain):
            return what
    if isinstance(error, ResponseError):
        return next((what for words, what in _ANSWERS.items() if str(error).startswith(words)), _SILENT)
    return _SILENT
