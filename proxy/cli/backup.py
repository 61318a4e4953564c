"""`fal-proxy backup`: a copy of the database, also while a server writes to it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from proxy.cli.database import read_store_settings
from proxy.cli.output import AsJson, refuse, say, shown_progress, to_json
from proxy.stores.sqlite.backup import BackupFailed, back_up


def backup(
    file: Annotated[str, typer.Argument(help="The new file; none may be there.")], as_json: AsJson = False
) -> None:
    """Copy the SQLite database to a file; a server may be running."""
    source = read_store_settings().sqlite_path
    if source is None:
        refuse(["PROXY_DATABASE_URL: this is PostgreSQL, which pg_dump copies while it serves; see docs/backup.md"])
    target = Path(file)
    with shown_progress("backup") as report:
        try:
            back_up(source, target, report)
        except BackupFailed as problem:
            refuse([str(problem)])
    size = target.stat().st_size
    say(f"backed up {size} bytes")
    print(to_json({"file": str(target), "bytes": size}) if as_json else target)
