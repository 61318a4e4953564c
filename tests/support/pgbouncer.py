"""A real PgBouncer in front of a PostgreSQL, as Debian's package brings it: it lends connections for a transaction."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.support.postgres import UNPRIVILEGED, Postgres, is_accepting
from tests.support.programs import Program
from tests.support.servers import free_port

#: Fewer server connections than a proxy opens, so that each transaction may run on any.
_CONFIGURATION = """
[databases]
* = host=127.0.0.1 port={postgres} user=proxy
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
auth_type = any
pool_mode = transaction
default_pool_size = 3
max_client_conn = 200
unix_socket_dir =
ignore_startup_parameters = extra_float_digits
"""


class PgBouncer(Program):
    def url(self, database: str) -> str:
        return f"postgresql://proxy@127.0.0.1:{self.port}/{database}"

    def is_ready(self) -> bool:
        return is_accepting(self.port)


@contextlib.contextmanager
def running_pgbouncer(postgres: Postgres) -> Iterator[PgBouncer]:
    """A pooler on a free port."""
    path, port = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/bin"), free_port()
    if path is None:
        raise FileNotFoundError("pgbouncer is missing: install Debian's package pgbouncer (make tools does)")
    with tempfile.TemporaryDirectory(prefix="fal-proxy-pgbouncer-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        configuration = folder / "pgbouncer.ini"
        configuration.write_text(_CONFIGURATION.format(postgres=postgres.port, port=port))
        pooler = PgBouncer([path, str(configuration)], port, folder / "log", user=UNPRIVILEGED)
        pooler.start()
        try:
            yield pooler
        finally:
            pooler.stop()
