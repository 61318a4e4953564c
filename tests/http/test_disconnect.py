"""Work ends with its caller's connection, and leaves no task behind."""

from __future__ import annotations

import asyncio

import pytest

from proxy.errors import BodyTooLarge
from proxy.http.disconnect import CallerGone, Disconnect, ReceivedDisconnect, cancel_on_disconnect

pytestmark = pytest.mark.anyio


async def test_work_is_cancelled_when_the_caller_hangs_up() -> None:
    cancelled = asyncio.Event()
    started = asyncio.Event()

    async def work() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def receive() -> dict[str, str]:
        await started.wait()
        return {"type": "http.disconnect"}

    with pytest.raises(CallerGone):
        await cancel_on_disconnect(ReceivedDisconnect(receive), work())
    assert cancelled.is_set()


async def never() -> None:
    await asyncio.Event().wait()


async def hanging_up() -> dict[str, str]:
    return {"type": "http.disconnect"}


async def test_a_caller_who_hung_up_leaves_the_task_uncancelled() -> None:
    with pytest.raises(CallerGone):
        await cancel_on_disconnect(ReceivedDisconnect(hanging_up), never())
    task = asyncio.current_task()
    assert task is not None and task.cancelling() == 0
    await asyncio.sleep(0)


async def test_a_cancellation_is_not_taken_for_a_caller_who_hung_up() -> None:
    """Also not when both happen at once: a server that stops must see its cancellation."""
    own: list[asyncio.Task[None]] = []

    async def receive() -> dict[str, str]:
        own[0].cancel()
        return {"type": "http.disconnect"}

    for one in (receive, never_receiving):
        own[:] = [asyncio.ensure_future(cancel_on_disconnect(ReceivedDisconnect(one), never()))]
        await asyncio.sleep(0)
        if one is never_receiving:
            own[0].cancel()
        await asyncio.wait(own)
        assert own[0].cancelled()


async def never_receiving() -> dict[str, str]:
    await never()
    raise AssertionError


async def test_a_caller_who_sends_too_much_meanwhile_is_refused() -> None:
    async def receive() -> dict[str, str]:
        raise BodyTooLarge("too much")

    with pytest.raises(BodyTooLarge):
        await cancel_on_disconnect(ReceivedDisconnect(receive), never())


async def test_finished_work_leaves_no_task_behind() -> None:
    before = asyncio.all_tasks()
    looked = asyncio.Event()

    async def receive() -> dict[str, str]:
        looked.set()
        return await never_receiving()

    async def work() -> int:
        await looked.wait()
        return 7

    async def failing() -> None:
        raise ZeroDivisionError

    assert await cancel_on_disconnect(ReceivedDisconnect(receive), work()) == 7
    with pytest.raises(ZeroDivisionError):
        await cancel_on_disconnect(ReceivedDisconnect(receive), failing())
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_a_lost_connection_cancels_the_work_of_its_request_alone() -> None:
    lost, other = Disconnect(), Disconnect()
    tasks = [asyncio.create_task(cancel_on_disconnect(one, never())) for one in (lost, other, None)]
    await asyncio.sleep(0)
    lost.happen()
    with pytest.raises(CallerGone):
        await tasks[0]
    assert tasks[0].cancelling() == 0 and not tasks[1].done() and not tasks[2].done()
    for task in tasks[1:]:
        task.cancel()
    await asyncio.wait(tasks[1:])
    assert tasks[1].cancelled() and tasks[2].cancelled()


async def test_work_is_not_begun_for_a_caller_who_left() -> None:
    begun: list[bool] = []

    async def work() -> None:
        begun.append(True)

    gone = Disconnect()
    gone.happen()
    with pytest.raises(CallerGone):
        await cancel_on_disconnect(gone, work())
    assert begun == []


async def test_a_connection_that_is_lost_after_the_work_cancels_nothing() -> None:
    async def work() -> int:
        return 7

    disconnect = Disconnect()
    assert await cancel_on_disconnect(disconnect, work()) == 7
    disconnect.happen()
    await asyncio.sleep(0)
    task = asyncio.current_task()
    assert task is not None and task.cancelling() == 0
