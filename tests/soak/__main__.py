"""The command line of the soak."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path

from tests.soak.run import soak

parser = argparse.ArgumentParser(prog="python -m tests.soak")
parser.add_argument("--minutes", type=float, default=10)
parser.add_argument("--jobs", type=int, default=500, help="how many are in flight")
given = parser.parse_args()
with tempfile.TemporaryDirectory() as folder:
    print(asyncio.run(soak(Path(folder), given.minutes * 60, given.jobs)))
