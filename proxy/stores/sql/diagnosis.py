"""What a database's error means, in words for the operator who mends it."""

from __future__ import annotations

import errno
import socket
import sqlite3
import ssl

from proxy.errors import StoreUnavailable
from proxy.stores.errors import DataRefused, FileUnusable, OutcomeUnknown, TransactionAborted

#: What SQLite raises where the data is at fault, and the classes of PostgreSQL's codes: data exceptions, and violated
#: constraints.
_REFUSALS = (sqlite3.IntegrityError, sqlite3.DataError, OverflowError)
_REFUSAL_STATES = ("22", "23")
#: Deadlocks, and transactions that cannot be put into an order.
_ROLLBACK_STATE = "40"
_SILENT = "does not answer; try again shortly"
_FOR_CALLERS = f"The proxy's database {_SILENT}."
_NO_ACCESS = (
    "file cannot be opened: let the user of this process read and write its folder, the file, and those beside it that "
    "end in -wal and -shm; if the process may, raise its limit of open files"
)
_READ_ONLY = (
    "file is read-only: let the user of this process write to it and to its folder, on a disk that is mounted writable"
)
_FULL = "disk is full: make room on it"
_NO_FILE = "file is a folder, a device or a link to itself: name a file, or remove it"
#: Of a SQLite file, by SQLite's primary codes (https://www.sqlite.org/rescode.html). It stays so until it is mended.
_UNUSABLE_FILES = {
    sqlite3.SQLITE_NOTADB: "file is not a SQLite database: restore a backup, or name another file",
    sqlite3.SQLITE_CORRUPT: "file is damaged: stop the proxy, and restore a backup",
    sqlite3.SQLITE_CANTOPEN: _NO_ACCESS,
    sqlite3.SQLITE_PERM: _NO_ACCESS,
    sqlite3.SQLITE_READONLY: _READ_ONLY,
}
#: The same, found by the system.
_UNUSABLE_PATHS = {
    errno.EACCES: _NO_ACCESS,
    errno.EPERM: _NO_ACCESS,
    errno.EROFS: _READ_ONLY,
    errno.ENOENT: "file has no folder: make the folder that PROXY_DATABASE_URL names, or mount it",
    errno.ENOTDIR: "file has no folder: a part of its path in PROXY_DATABASE_URL is a file",
    errno.EEXIST: _NO_FILE,
    errno.EISDIR: _NO_FILE,
    errno.ENAMETOOLONG: "file has too long a name: name another file",
}
#: These can pass by themselves.
_FILES = {
    sqlite3.SQLITE_FULL: _FULL,
    sqlite3.SQLITE_IOERR: "disk fails: look for errors of the disk in the system's log",
    sqlite3.SQLITE_BUSY: "file is locked by another process: end what keeps it locked, or try again shortly",
    sqlite3.SQLITE_LOCKED: "file is locked by another process: end what keeps it locked, or try again shortly",
    sqlite3.SQLITE_ERROR: "lacks a table or a column: restore a backup, or run: fal-proxy migrate",
}
_PATHS = {errno.ENOSPC: _FULL, errno.EDQUOT: _FULL, errno.EIO: _FILES[sqlite3.SQLITE_IOERR]}
#: Of PostgreSQL, by SQLSTATE or its class (https://www.postgresql.org/docs/current/errcodes-appendix.html).
_STATES = {
    # What poolers say of a connection that they do not take.
    "08P01": "is behind a pooler that takes no connection: take options out of PROXY_DATABASE_URL, or see its log",
    "28": "refuses the user or the password: correct PROXY_DATABASE_URL, or the server's pg_hba.conf",
    "3D000": "does not exist: create it, or correct its name in PROXY_DATABASE_URL",
    "3F000": "has no schema of the search_path: create it, or take it out of PROXY_DATABASE_URL",
    # With these, no connection is made; a statement of this program has neither.
    **dict.fromkeys(("42601", "42704"), "does not take the options in PROXY_DATABASE_URL: correct them"),
    "42501": "does not let this user do what the proxy needs: grant the rights on its schema and tables",
    "42": "lacks a table or a column: restore a backup, or run: fal-proxy migrate",
    "25006": "takes no writes: let PROXY_DATABASE_URL lead to the primary server",
    "53100": _FULL,
    "53300": "takes no more connections: raise max_connections, or start fewer workers",
}

#: What keeps a connection to PostgreSQL from being made, the most particular first.
_CONNECTIONS: tuple[tuple[type[BaseException], str], ...] = (
    (socket.gaierror, "has no address: correct the host in PROXY_DATABASE_URL"),
    (
        ssl.SSLCertVerificationError,
        "has a certificate that cannot be verified: correct the host, sslmode or sslrootcert in PROXY_DATABASE_URL",
    ),
    (ssl.SSLError, "cannot be reached with TLS: correct sslmode and the certificates in PROXY_DATABASE_URL"),
    (FileNotFoundError, "has no socket there: correct the host in PROXY_DATABASE_URL, or start the server"),
    (ConnectionRefusedError, "is not there: correct the host and port in PROXY_DATABASE_URL, or start the server"),
)
_NO_TLS = "takes no TLS: let the server take it, or correct sslmode in PROXY_DATABASE_URL"


def diagnose(error: BaseException, *, is_file: bool) -> StoreUnavailable:
    """Return what to raise for the error of a driver: without its text, as that may quote values.

    Args:
        is_file: whether the database is a SQLite file.
    """
    original = getattr(error, "orig", error)
    state = getattr(original, "sqlstate", None) or ""
    if isinstance(original, _REFUSALS) or state[:2] in _REFUSAL_STATES:
        return DataRefused("The proxy's database does not take that.")
    if state[:2] == _ROLLBACK_STATE:
        return TransactionAborted("The proxy's database is busy; try again shortly.")
    if getattr(error, "is_in_doubt", False):
        return _make(OutcomeUnknown, _SILENT)
    if not is_file:
        return _make(StoreUnavailable, _STATES.get(state) or _STATES.get(state[:2]) or _diagnose_connection(original))
    if isinstance(original, sqlite3.Error):
        return _diagnose_code(getattr(original, "sqlite_errorcode", 0) & 0xFF, _UNUSABLE_FILES, _FILES)
    return _diagnose_code(getattr(original, "errno", None) or 0, _UNUSABLE_PATHS, _PATHS)


def _diagnose_connection(error: BaseException) -> str:
    # asyncpg raises this class itself, for a server that refuses to encrypt.
    if type(error) is ConnectionError:
        return _NO_TLS
    return next((what for kind, what in _CONNECTIONS if isinstance(error, kind)), _SILENT)


def _diagnose_code(code: int, lasting: dict[int, str], passing: dict[int, str]) -> StoreUnavailable:
    if code in lasting:
        return _make(FileUnusable, lasting[code])
    return _make(StoreUnavailable, passing.get(code, _SILENT))


def _make(kind: type[StoreUnavailable], what: str) -> StoreUnavailable:
    return kind(f"The proxy's database {what}.", for_callers=_FOR_CALLERS)
