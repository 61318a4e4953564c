"""Fixtures of this folder's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.security.wire import Wire
from tests.support.stack import Stack


@pytest.fixture
def wire(stack: Stack) -> Iterator[Wire]:
    with Wire(stack.url) as wire:
        yield wire
