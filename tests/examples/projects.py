"""The examples in folders of their own, with the packages of `tests/clients/kits`, and their servers."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.clients.install import KITS, python_of

EXAMPLES = Path(__file__).parents[2] / "examples"
PYTHON = str(python_of("kits") / "bin" / "python")
_INSTALLED = shutil.ignore_patterns("node_modules", "dist", ".next")


@contextlib.contextmanager
def node_project(example: Path | None = None) -> Iterator[Path]:
    """A project for the block, with the files of an example; packages are found in the folder above it."""
    assert KITS.is_dir(), "the packages are not installed; `make clients` does that"
    with tempfile.TemporaryDirectory(dir=KITS) as name:
        project = Path(name)
        if example:
            shutil.copytree(example, project, ignore=_INSTALLED, dirs_exist_ok=True)
        # As `npm install --install-links` leaves it: a copy, which finds React in the same folders as the app.
        shutil.copytree(EXAMPLES / "client", project / "node_modules" / "@fal-proxy" / "client")
        yield project


@contextlib.contextmanager
def started(command: list[str], project: Path, log: Path, **environ: str) -> Iterator[None]:
    """A server and the processes that it starts; all end with the block."""
    with log.open("wb") as output:
        variables = {"PATH": os.environ["PATH"], "HOME": str(log.parent), "NEXT_TELEMETRY_DISABLED": "1", **environ}
        process = subprocess.Popen(
            command, cwd=project, env=variables, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
