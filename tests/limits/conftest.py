"""What the tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from proxy.sandbox.app import create_sandbox
from tests.support.sandbox import SandboxControl
from tests.support.servers import running


@pytest.fixture
def fal() -> Iterator[SandboxControl]:
    """A sandbox of one test alone, with a whole record of its calls."""
    with running(create_sandbox(), timeout_keep_alive=300) as url:
        control = SandboxControl(url)
        yield control
        control.close()
