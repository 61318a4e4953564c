"""A real PostgreSQL server, as Debian's package brings it, with a fresh cluster of databases."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.programs import Program
from tests.support.servers import free_port

_DEBIAN = Path("/usr/lib/postgresql")
_OWNER = "proxy"
#: It refuses to be root, so root lends it the user that the package makes.
UNPRIVILEGED = "postgres" if os.geteuid() == 0 else None


class Postgres(Program):
    def __init__(self, folder: Path, port: int, options: list[str]) -> None:
        command = [program("postgres"), "-D", str(folder / "data"), "-p", str(port), *options]
        # "Fast": it closes the connections of its clients instead of waiting for them.
        super().__init__(command, port, folder / "log", user=UNPRIVILEGED, stop_signal=signal.SIGINT)

    def crash(self) -> None:
        """End it as a fault would: it has to recover from its log."""
        self._running.send_signal(signal.SIGQUIT)
        self._running.wait(timeout=180)

    def url(self, database: str) -> str:
        return f"postgresql://{_OWNER}@127.0.0.1:{self.port}/{database}"

    def create_database(self, template: str = "template0") -> str:
        """Create a database, empty or a copy of another one without connections; its name."""
        name = f"test_{secrets.token_hex(6)}"
        self._run("createdb", "-T", template, name)
        return name

    def ask(self, database: str, query: str) -> str:
        """The unadorned answer of psql."""
        return self._run("psql", "-XAtq", "-d", database, "-c", query).strip()

    def is_ready(self) -> bool:
        return is_accepting(self.port)

    def _run(self, name: str, *arguments: str) -> str:
        command = [program(name), "-h", "127.0.0.1", "-p", str(self.port), "-U", _OWNER, *arguments]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def program(name: str) -> str:
    """The path of one of PostgreSQL's programs. Debian keeps the server's out of the PATH.

    Raises:
        FileNotFoundError: it is not installed.
    """
    found = sorted(_DEBIAN.glob(f"*/bin/{name}"))
    path = str(found[-1]) if found else shutil.which(name)
    if path is None:
        raise FileNotFoundError(f"{name} is missing: install Debian's package postgresql (make tools does)")
    return path


@contextlib.contextmanager
def running_standby(primary: Postgres) -> Iterator[Postgres]:
    """A server that follows another, as streaming replication does, until it is promoted."""
    with _folder() as folder:
        command = [program("pg_basebackup"), "-h", "127.0.0.1", "-p", str(primary.port), "-U", _OWNER]
        command += ["-D", str(folder / "data"), "-R", "-X", "stream", "-c", "fast", "--no-sync"]
        subprocess.run(command, check=True, **_owner())
        yield from _run_server(folder, durable=False)


def is_accepting(port: int) -> bool:
    """Whether a server, or a pooler, takes connections."""
    asked = [program("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
    return subprocess.run(asked, check=False).returncode == 0


@contextlib.contextmanager
def running_postgres(*, durable: bool = False) -> Iterator[Postgres]:
    """A server on a free port. `durable` only where a test pulls the plug of the database itself."""
    with _folder() as folder:
        _initialise(folder / "data")
        yield from _run_server(folder, durable=durable)


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    name = tempfile.mkdtemp(prefix="fal-proxy-postgres-")
    try:
        if UNPRIVILEGED:
            shutil.chown(name, UNPRIVILEGED, UNPRIVILEGED)
        yield Path(name)
    finally:
        # Not waited for: hundreds of databases are a hundred thousand files, which take half a minute.
        os.posix_spawnp("rm", ["rm", "-rf", name], os.environ)


def _run_server(folder: Path, *, durable: bool) -> Iterator[Postgres]:
    options = ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "max_connections=200"]
    if not durable:
        options += ["-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off"]
    server = Postgres(folder, free_port(), options)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _owner() -> dict[str, Any]:
    return {"user": UNPRIVILEGED, "group": UNPRIVILEGED, "extra_groups": []} if UNPRIVILEGED else {}


def _initialise(data: Path) -> None:
    command = [program("initdb"), "-D", str(data), "-U", _OWNER, "--auth=trust", "--encoding=UTF8", "--no-sync"]
    # Not the C locale: there the database sorts as Python does, and would hide where their orders differ.
    command += ["--locale-provider=icu", "--icu-locale=en", "--locale=C.UTF-8", "--no-instructions"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **_owner())
    assert done.returncode == 0, done.stdout
