"""The fuzz of the parsers, bounded: the same inputs each time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.bench.processes import ROOT


def test_no_bytes_break_a_parser(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz.parsers", "-runs=20000", "-seed=1", f"-artifact_prefix={tmp_path}/"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-4000:]
    assert "Done 20000 runs" in found.stderr
