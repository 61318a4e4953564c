"""The memory of a process stays bounded, however many addresses, sessions and subjects call it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

MIB = 2**20


def test_100_000_names_take_at_most_40_mib(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "tests.limits.names", f"sqlite:///{tmp_path / 'proxy.db'}"]
    done = subprocess.run(program, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    full, more, afterwards = json.loads(done.stdout)
    assert full <= 40 * MIB, f"{full / MIB:.1f} MiB"
    # The allocator alone moves by 2 MiB; 50 bytes kept of each of the 60,000 would be more than 3.
    assert max(more, afterwards) <= full + 3 * MIB, f"{full}, {more} and {afterwards} bytes"
