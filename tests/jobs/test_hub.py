"""The hub: one upstream stream for each job, opened again when it breaks, closed when no reader is left."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator

import orjson
import pytest

from proxy.jobs.history import MOST_LAG
from proxy.jobs.hub import IDLE_SECONDS
from proxy.jobs.opening import JobUnknown
from proxy.jobs.watches import MOST_WATCHES, watches_per_tenant
from proxy.stores.ledger import Job
from proxy.upstream.event_reader import StreamBroken
from tests.jobs.hubs import JOB, Bench, cut_at, hub_before, is_reading, lines_of, reading
from tests.support.scripted import ID, ScriptedFal, log_line, whole_life
from tests.support.waiting import wait_until_async

pytestmark = pytest.mark.anyio


async def test_the_id_in_a_stream_is_that_of_the_job() -> None:
    """Callers build the next URL from it."""
    fal = ScriptedFal(whole_life())
    for document in fal.documents:
        document["request_id"] = "../../other"
    async with hub_before(fal) as bench:
        assert {document["request_id"] for document in await bench.fal_form()} == {ID}


async def test_all_readers_share_one_stream() -> None:
    fal = ScriptedFal(whole_life()[:1])
    async with hub_before(fal) as bench:
        polls = await asyncio.gather(*(bench.hub.get_or_watch(JOB) for _ in range(20)))
        assert {poll.state for poll in polls if poll} == {"IN_QUEUE"} and None not in polls
        watchers = [asyncio.create_task(bench.fal_form()) for _ in range(20)]
        with reading(bench.hub) as watch:
            await wait_until_async(lambda: is_reading(watch, 21))
        for document in whole_life()[1:]:
            fal.add(**document)
            await wait_until_async(
                lambda: (found := bench.hub.find_cached(JOB)) and found.state == fal.documents[-1]["status"]
            )
        for documents in await asyncio.gather(*watchers):
            assert lines_of(documents) == fal.lines() and documents[-1]["status"] == "COMPLETED"
        assert fal.calls == ["stream"] and len(bench.hub) == 0
        ended = await bench.hub.get_or_watch(JOB)
        assert ended and ended.is_last and fal.calls == ["stream"]
        assert [one["status"] for one in await bench.fal_form()] == ["COMPLETED"]
    assert bench.recorder.saw[-1] == {"job": "1", "status": "COMPLETED"} and fal.open == 0


async def test_a_poll_at_the_very_end_of_a_job_opens_no_stream() -> None:
    fal = ScriptedFal(whole_life()[:1])
    async with hub_before(fal) as bench:
        await bench.hub.get_or_watch(JOB)
        for document in whole_life()[1:]:
            fal.add(**document)
        polls = 0
        while not (found := bench.hub.find_cached(JOB)) or not found.is_last or polls < 20:
            bench.hub.leave(bench.hub.join(JOB))
            polls += bool(found and found.is_last)
            await asyncio.sleep(0)
    assert fal.calls == ["stream"]


async def test_a_job_without_readers_is_forgotten() -> None:
    fal = ScriptedFal(whole_life()[:1])
    async with hub_before(fal) as bench:
        assert not bench.hub.is_watching(JOB)
        await bench.hub.get_or_watch(JOB)
        assert bench.hub.is_watching(JOB)
        bench.clock.advance(IDLE_SECONDS - 1)
        await bench.hub.sweep()
        assert bench.hub.find_cached(JOB), "it was asked for just now"
        assert bench.recorder.living == [JOB.id], "the slot of a job that polls ask for is kept"
        bench.clock.advance(IDLE_SECONDS - 1)
        await bench.hub.sweep()
        assert len(bench.hub) == 1
        with reading(bench.hub):
            bench.clock.advance(IDLE_SECONDS * 10)
            await bench.hub.sweep()
            assert len(bench.hub) == 1, "an event stream reads it"
            assert bench.recorder.living[-1] == JOB.id, "its slot is kept"
        bench.clock.advance(IDLE_SECONDS)
        await bench.hub.sweep()
        assert len(bench.hub) == 0
        await wait_until_async(lambda: fal.open == 0)
        assert await bench.hub.get_or_watch(JOB) and fal.calls == ["stream", "stream"]


async def test_a_silent_stream_is_noticed_and_polls_ask_fal_meanwhile() -> None:
    silent = asyncio.Event()

    async def wire(number: int, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        yield await anext(pieces)
        if number == 0:
            await silent.wait()
        async for piece in pieces:
            yield piece

    fal = ScriptedFal(whole_life()[:1], wire)
    async with hub_before(fal, silence_seconds=0.05) as bench:
        assert await bench.hub.get_or_watch(JOB)
        await wait_until_async(lambda: bench.hub.find_cached(JOB) is None)
        assert not bench.hub.is_watching(JOB)
        assert await bench.hub.get_or_watch(JOB) is None, "a stream that is silent knows nothing"
        assert (await bench.queue.status(JOB, logs=True)).reply.status == 202
        await wait_until_async(lambda: bench.hub.find_cached(JOB) is not None)
        assert fal.calls[0] == "stream" and fal.calls.count("stream") >= 2


async def test_polls_ask_fal_one_at_a_time() -> None:
    fal = ScriptedFal(whole_life()[:1])
    async with hub_before(fal) as bench:
        answers = await asyncio.gather(*(bench.queue.status(JOB, logs=True) for _ in range(10)))
        assert len({answer.reply.body for answer in answers}) == 1 and fal.calls == ["status"]


async def test_a_stream_that_never_sends_an_event_is_given_up() -> None:
    fal = ScriptedFal(whole_life()[:1], lambda _, pieces: cut_at(10, pieces, "drop"))
    async with hub_before(fal, backoff=(0.001,) * 7) as bench:
        with reading(bench.hub) as watch, pytest.raises(StreamBroken):
            await watch.first_update(100)
        assert fal.calls == ["stream"] * 8 and fal.open == 0
        await wait_until_async(lambda: len(bench.hub) == 0)


async def test_a_stream_that_ends_a_job_which_fal_says_is_running_is_given_up() -> None:
    """Nothing that was missed in it can be made up for: it is neither the end nor news."""

    async def end_early(_: int, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        del pieces
        yield b"data: {no json\n\n"
        yield b"data: " + orjson.dumps({"request_id": ID, **whole_life()[-1]}) + b"\n\n"

    fal = ScriptedFal(whole_life()[:3], end_early)
    async with hub_before(fal, backoff=(0.001,) * 7) as bench:
        with reading(bench.hub) as watch, pytest.raises(StreamBroken):
            await watch.first_update(100)
        assert fal.calls == ["stream", "status"] * 8 and fal.open == 0


async def test_backoff_grows_without_news_but_a_stream_with_events_is_never_given_up() -> None:
    async def whole_first(number: int, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        yield await anext(pieces)
        if number < 20:
            return
        async for piece in pieces:
            yield piece

    fal = ScriptedFal(whole_life()[:1], whole_first)
    async with hub_before(fal, backoff=(0.0, 0.0, 0.0, 0.05)) as bench:
        began = asyncio.get_running_loop().time()
        await bench.hub.get_or_watch(JOB)
        await wait_until_async(lambda: fal.calls.count("stream") == 21)
        assert asyncio.get_running_loop().time() - began > 0.15, "without news it pauses longer each time"
        await wait_until_async(lambda: bench.hub.find_cached(JOB) is not None)


async def test_a_job_that_fal_does_not_know_ends_in_an_error() -> None:
    fal = ScriptedFal(whole_life()[:1], lambda _, pieces: cut_at(100, pieces, "drop"))
    fal.knows = False
    async with hub_before(fal) as bench:
        with reading(bench.hub) as watch, pytest.raises(JobUnknown):
            await watch.first_update(3)
        assert await bench.hub.get_or_watch(JOB) is None
        assert (await bench.queue.status(JOB, logs=False)).reply.status == 404


async def test_a_waiting_reader_gets_an_error_when_the_hub_closes() -> None:
    fal = ScriptedFal()
    async with hub_before(fal) as bench:
        with reading(bench.hub) as watch:
            waiting = asyncio.create_task(watch.first_update())
            await wait_until_async(lambda: fal.open == 1)
            await bench.hub.close()
            with pytest.raises(StreamBroken):
                await asyncio.wait_for(waiting, 60)


async def test_a_slow_reader_misses_states_but_no_log_line_and_not_the_end() -> None:
    fal = ScriptedFal(whole_life()[:1])
    async with hub_before(fal) as bench:
        with reading(bench.hub) as watch:
            await watch.first_update()
            updates = watch.updates(None, 5)
            first = await anext(updates)
            assert first and first[0].state == "IN_QUEUE"
            for number in range(MOST_LAG * 3):
                fal.add(status="IN_PROGRESS", logs=[log_line("x" * (number + 1))])
                await wait_until_async(lambda: watch.latest and watch.latest.lines == len(fal.lines()))
            fal.add(status="COMPLETED")
            await wait_until_async(lambda: watch.is_over)
            rest = [news async for news in updates if news]
    assert len(rest) <= MOST_LAG and rest[-1][0].is_last
    seen = [number for update, first_line in rest for number in range(first_line, update.lines)]
    assert seen == list(range(len(fal.lines()))), "each line once"
    assert len(watch._history._recent) <= MOST_LAG


def shows_the_latest(bench: Bench) -> bool:
    known = bench.hub.find_cached(JOB)
    return (
        known is not None and known.state == bench.fal.documents[-1]["status"] and known.lines == len(bench.fal.lines())
    )


@pytest.mark.parametrize("cut", ["IN_QUEUE.1.0", "IN_QUEUE.0.0", "IN_PROGRESS..1", "IN_PROGRESS..3", "COMPLETED..4"])
async def test_a_stream_is_resumed_after_any_event_by_a_process_that_knows_nothing(cut: str) -> None:
    life = whole_life()
    first = ScriptedFal(life[:1])
    async with hub_before(first) as bench:
        reading = asyncio.create_task(bench.native())
        for document in life[1:]:
            await wait_until_async(lambda: shows_the_latest(bench))
            await asyncio.sleep(0.01)
            first.add(**document)
        events = [event for event in await reading if "event" in event]
    assert [event["id"] for event in events] == [
        "IN_QUEUE.1.0", "IN_QUEUE.0.0", "IN_PROGRESS..1", "IN_PROGRESS..3", "COMPLETED..4", "END"
    ]  # fmt: skip
    place = [event["id"] for event in events].index(cut) + 1
    second = ScriptedFal(life[:place])
    async with hub_before(second) as bench:
        reading = asyncio.create_task(bench.native(after=cut))
        for document in life[place:]:
            await wait_until_async(lambda: shows_the_latest(bench))
            await asyncio.sleep(0.01)
            second.add(**document)
        rest = [event for event in await reading if "event" in event]
    assert rest == events[place:] and rest[-1]["event"] == "result"


async def test_a_reader_who_resumes_after_the_end_of_a_job_gets_the_end() -> None:
    fal = ScriptedFal(whole_life())
    async with hub_before(fal) as bench:
        await bench.native()
        for _ in range(2):
            (only,) = [event for event in await bench.native("COMPLETED..4") if "event" in event]
            assert (only["event"], only["id"]) == ("result", "END")


async def test_only_the_latest_update_keeps_its_whole_log_in_the_form_of_polls() -> None:
    """A log of 300 kB that grows a line at a time, with a poll after each, and readers who come back anywhere."""
    fal = ScriptedFal([{"status": "IN_PROGRESS", "logs": [log_line(f"{n} {'x' * 1000}") for n in range(300)]}])
    async with hub_before(fal) as bench:
        with reading(bench.hub) as watch:
            await watch.first_update()
            tracemalloc.start()
            try:
                for count in range(MOST_LAG):
                    fal.add(status="IN_PROGRESS", logs=[log_line(f"more {count}")])
                    await wait_until_async(lambda seen=301 + count: watch.latest and watch.latest.lines == seen)
                    update = await bench.hub.get_or_watch(JOB)
                    assert update is not None and len(orjson.loads(update.encode(0))["logs"]) == 301 + count
                taken = tracemalloc.get_traced_memory()[0]
            finally:
                tracemalloc.stop()
    assert taken < 1_500_000


def job_of(tenant: str, number: int) -> Job:
    return JOB._replace(tenant=tenant, id=f"{tenant}{number}", request_id=f"{tenant}-{number}")


async def test_no_tenant_takes_all_the_jobs_that_a_process_follows() -> None:
    fal = ScriptedFal(whole_life()[:1])
    async with hub_before(fal, most_watches=(4, 3)) as bench:
        found = [await bench.hub.get_or_watch(job_of("acme", number)) is not None for number in range(5)]
        assert found == [True, True, True, False, False], "the others ask fal itself"
        assert await bench.hub.get_or_watch(job_of("globex", 0)) is not None
        assert await bench.hub.get_or_watch(job_of("initech", 0)) is None, "the process follows as many as it may"
        assert await bench.hub.get_or_watch(job_of("acme", 0)) is not None and len(bench.hub) == 4
        # A job that is no longer followed makes room for another, of its tenant and of the process.
        bench.clock.advance(IDLE_SECONDS)
        assert await bench.hub.get_or_watch(job_of("globex", 0)) is not None
        await bench.hub.sweep()
        assert len(bench.hub) == 1
        assert [await bench.hub.get_or_watch(job_of("acme", number)) is not None for number in range(5, 9)] == found[:4]
        fal.add(status="COMPLETED")
        await wait_until_async(lambda: len(bench.hub) == 0)
        fal.documents.pop()
        assert [await bench.hub.get_or_watch(job_of("acme", number)) is not None for number in range(10, 14)] == found[
            :4
        ]


def test_one_of_several_tenants_may_use_half_of_all_watches() -> None:
    assert [watches_per_tenant(tenants) for tenants in (0, 1, 2, 9)] == [MOST_WATCHES] * 2 + [MOST_WATCHES // 2] * 2
