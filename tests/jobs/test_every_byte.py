"""A status stream that is damaged at any byte, or in other ways: every reader gets all log lines and the true end."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable

import orjson
import pytest

from tests.jobs.hubs import JOB, Bench, cut_at, hub_before, lines_of
from tests.support.scripted import ANSWER, ScriptedFal, Wire, whole_life

pytestmark = pytest.mark.anyio
EVENTS = [b"data: " + orjson.dumps(document) + b"\n\n" for document in ScriptedFal(whole_life()).documents]
LENGTH = sum(map(len, EVENTS))
#: How many run at once: together they wait for a stall or a pause only once.
AT_ONCE = 200


async def all_events(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The job's whole life on one stream, instead of what fal sends."""
    del pieces
    for event in EVENTS:
        yield event


def first_only(damage: Callable[[AsyncIterator[bytes]], AsyncIterator[bytes]]) -> Wire:
    return lambda number, pieces: damage(all_events(pieces)) if number == 0 else pieces


async def sees_the_truth(wire: Wire, *, refuses: bool = False, silence_seconds: float = 0.2) -> Bench:
    fal = ScriptedFal(whole_life(), wire)
    fal.refuses = refuses
    async with hub_before(fal, silence_seconds=silence_seconds) as bench:
        with_logs, without, native = await asyncio.gather(bench.fal_form(), bench.fal_form(logs=False), bench.native())
        statuses = [orjson.loads(event["data"]) for event in native if event.get("event") == "status"]
        for documents in (with_logs, statuses):
            assert documents[-1]["status"] == "COMPLETED" and lines_of(documents) == fal.lines()
        assert without[-1]["status"] == "COMPLETED" and not lines_of(without)
        assert native[-1] == {"event": "result", "id": "END", "data": ANSWER.decode()}
        known = bench.hub.find_cached(JOB)
        assert known and orjson.loads(known.encode(0)) == fal._cumulative()
    assert fal.open == 0 and fal.calls.count("result") == 1
    return bench


@pytest.mark.slow
@pytest.mark.parametrize("then", ["drop", "end", "stall"])
async def test_a_stream_cut_at_any_byte_leads_to_the_same_end(then: str) -> None:
    offsets = range(LENGTH + 1)
    for start in range(0, len(offsets), AT_ONCE):
        await asyncio.gather(
            *(
                sees_the_truth(first_only(lambda pieces, at=at: cut_at(at, pieces, then)))  # type: ignore[misc]
                for at in offsets[start : start + AT_ONCE]
            )
        )


@pytest.mark.slow
async def test_a_stream_in_two_pieces_is_read_like_a_whole_one() -> None:
    whole = b"".join(EVENTS)

    def split(at: int) -> Wire:
        async def halves(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
            del pieces
            yield whole[:at]
            await asyncio.sleep(0)
            yield whole[at:]

        return first_only(halves)

    for at in range(LENGTH + 1):
        bench = await sees_the_truth(split(at))
        assert bench.fal.calls.count("stream") == 1, "nothing was wrong with it"


@pytest.mark.slow
async def test_a_wrong_byte_at_any_place_leads_to_the_same_end() -> None:
    """Except in the name of a field: a field of another name has to be ignored."""
    whole = b"".join(EVENTS)
    names = {match.start() + n for match in re.finditer(b"data: ", whole) for n in range(-1, 5)}
    offsets = [at for at in range(LENGTH) if at not in names]

    def spoilt(at: int) -> Wire:
        async def wrong(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
            del pieces
            yield whole[:at] + b"\xff" + whole[at + 1 :]

        return first_only(wrong)

    for start in range(0, len(offsets), AT_ONCE):
        await asyncio.gather(*(sees_the_truth(spoilt(at)) for at in offsets[start : start + AT_ONCE]))


@pytest.mark.parametrize("refuses", [False, True], ids=["fal-answers", "fal-refuses"])
@pytest.mark.parametrize(
    "garbage",
    [b"{no json", b'"text"', b'{"status":"WARMING","request_id":"x"}', b'{"status":"COMPLETED"}'],
)
@pytest.mark.parametrize("instead_of", range(len(EVENTS)))
async def test_garbage_in_place_of_an_event_leads_to_the_same_end(
    instead_of: int, garbage: bytes, refuses: bool
) -> None:
    async def litter(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        del pieces
        for number, event in enumerate(EVENTS):
            yield b"data: " + garbage + b"\n\n" if number == instead_of else event

    await sees_the_truth(first_only(litter), refuses=refuses)


@pytest.mark.parametrize("in_one_piece", [False, True])
@pytest.mark.parametrize("first", range(len(EVENTS) - 1))
async def test_events_in_another_order_lead_to_the_same_end(first: int, in_one_piece: bool) -> None:
    async def swap(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        del pieces
        order = list(EVENTS)
        order[first], order[first + 1] = order[first + 1], order[first]
        for piece in [b"".join(order)] if in_one_piece else order:
            yield piece

    fal = ScriptedFal(whole_life(), first_only(swap))
    async with hub_before(fal) as bench:
        documents = await bench.fal_form()
        assert documents[-1]["status"] == "COMPLETED" and sorted(lines_of(documents)) == sorted(fal.lines())


@pytest.mark.parametrize("in_one_piece", [False, True])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
async def test_repeated_events_comments_and_any_line_end_are_read(line_end: bytes, in_one_piece: bool) -> None:
    repeated = [(b": ping\n\n" + event).replace(b"\n", line_end) for event in EVENTS for _ in range(2)]

    async def repeat_each(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        del pieces
        for piece in [b"".join(repeated)] if in_one_piece else repeated:
            yield piece

    bench = await sees_the_truth(first_only(repeat_each))
    assert bench.fal.calls.count("stream") == 1 and "status" not in bench.fal.calls


async def test_a_stream_that_stays_open_after_its_last_event_is_left() -> None:
    async def open_ended(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for piece in all_events(pieces):
            yield piece
        await asyncio.Event().wait()

    # Not the silence ends it.
    await sees_the_truth(first_only(open_ended), silence_seconds=3600)
