"""What the tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.security.wire import Wire
from tests.support.stack import Stack


@pytest.fixture
def wire(stack: Stack) -> Iterator[Wire]:
    with Wire(stack.url) as wire:
        yield wire
