"""What the rest of the program sees of a drain; tests/server/test_drain.py has what the outside sees."""

from __future__ import annotations

import asyncio

import pytest

from proxy.drain import Drain
from proxy.errors import Draining

pytestmark = pytest.mark.anyio


async def test_new_work_is_refused_from_the_start_on() -> None:
    drain = Drain(25)
    drain.refuse_new_work()
    drain.start()
    with pytest.raises(Draining) as refusal:
        drain.refuse_new_work()
    assert (refusal.value.status, refusal.value.retry_after) == (503, 1)
    assert drain.started.is_set() and not drain.over.is_set()


@pytest.mark.parametrize(("seconds", "for_calls"), [(25, 23.0), (4, 2.0), (1, 0.5), (0, 0.0)])
async def test_the_process_keeps_some_of_the_time_for_its_own_end(seconds: float, for_calls: float) -> None:
    drain = Drain(seconds)
    assert drain.seconds_left() == for_calls
    assert drain.settling_seconds + for_calls == max(seconds, 0.5)


async def test_time_runs_from_the_first_signal_and_is_over_at_its_end() -> None:
    drain = Drain(1)
    drain.start()
    before = drain.seconds_left()
    drain.start()
    assert drain.seconds_left() <= before <= 0.5
    await asyncio.wait_for(drain.over.wait(), 60)
    assert drain.seconds_left() == 0


async def test_an_end_leaves_no_time() -> None:
    drain = Drain(600)
    drain.end()
    assert drain.started.is_set() and drain.over.is_set() and drain.seconds_left() == 0
