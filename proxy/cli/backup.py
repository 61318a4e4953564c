"""`fal-proxy backup`: a copy of the database, also while a server writes to it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from proxy.cli.database import read_store_settings
from proxy.cli.output import refuse, say
from proxy.stores.sqlite.backup import BackupFailed, back_up


def backup(file: Annotated[str, typer.Argument(help="The new file; none may be there.")]) -> None:
    """Copy the SQLite database to a file; a server may be running."""
    source = read_store_settings().sqlite_path
    if source is None:
        refuse(["PROXY_DATABASE_URL: this is PostgreSQL, which pg_dump copies while it serves; see docs/backup.md"])
    target = Path(file)
    # Shown on a terminal only.
    with typer.progressbar(length=0, label="backup", file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:

        def report(copied: int, pages: int) -> None:
            bar.length = pages
            bar.update(copied - bar.pos)

        try:
            back_up(source, target, report)
        except BackupFailed as problem:
            refuse([str(problem)])
    say(f"backed up {target.stat().st_size} bytes")
    print(target)
