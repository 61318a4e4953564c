"""Half a minute of the soak; `make soak` goes on for ten."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.run import soak


@pytest.mark.anyio
async def test_nothing_is_lost_and_nothing_accumulates(tmp_path: Path) -> None:
    seen = await soak(tmp_path, 30, 75)
    assert "jobs ended with their own answer" in seen
