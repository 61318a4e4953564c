"""The event that a connection's tasks wait for: it behaves as asyncio's does."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from proxy.server.event import LightEvent

pytestmark = pytest.mark.anyio

EVENTS = [pytest.param(asyncio.Event, id="asyncio's"), pytest.param(LightEvent, id="ours")]


@pytest.mark.parametrize("new_event", EVENTS)
async def test_waiters_wake_when_an_event_is_set_and_later_ones_do_not_wait(new_event: Any) -> None:
    event = new_event()
    waiting = [asyncio.create_task(event.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    event.set()
    await asyncio.gather(*waiting)
    assert event.is_set()
    await event.wait()


@pytest.mark.parametrize("new_event", EVENTS)
async def test_a_cleared_event_is_waited_for_again(new_event: Any) -> None:
    event = new_event()
    event.set()
    event.clear()
    waiting = asyncio.create_task(event.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    event.set()
    await waiting


@pytest.mark.parametrize("new_event", EVENTS)
async def test_one_that_gives_up_leaves_the_others_waiting(new_event: Any) -> None:
    event = new_event()
    leaving, staying = (asyncio.create_task(event.wait()) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait({leaving})
    assert leaving.cancelled()
    assert not staying.done()
    event.set()
    await staying


@pytest.mark.parametrize("new_event", EVENTS)
async def test_a_waiter_that_is_cancelled_after_it_was_woken_leaves_the_others(new_event: Any) -> None:
    event = new_event()
    leaving, staying = (asyncio.create_task(event.wait()) for _ in range(2))
    await asyncio.sleep(0)
    event.set()
    leaving.cancel()
    await asyncio.wait({leaving, staying})
    assert leaving.cancelled()
    assert staying.exception() is None
