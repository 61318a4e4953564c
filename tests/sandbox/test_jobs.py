"""A job's way as a function of time, on a clock that the test moves."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from proxy.catalog import built_in
from proxy.sandbox.answers import Answer, platform_failure, success
from proxy.sandbox.jobs import Job, Jobs, direct_steps, queued_steps, streamed_steps
from proxy.sandbox.timing import COMPLETED, IN_PROGRESS, IN_QUEUE, Timing
from tests.support.clock import MovableClock

pytestmark = pytest.mark.anyio
PACE = Timing(queue_positions=3, seconds_per_position=1, run_seconds=3)


async def _answer() -> Answer:
    return success({"output": "yes"}, 3)


def _job(clock: MovableClock, pace: Timing = PACE, **more: float) -> Job:
    endpoint = built_in().get("fal-ai/llava-next")
    assert endpoint is not None
    work = asyncio.create_task(_answer())
    return Job(
        "queue", endpoint, queued_steps(pace), work, timing=pace, clock=clock.now, start_within=more.get("within")
    )


async def test_positions_count_down_and_the_states_follow() -> None:
    clock, seen = MovableClock(), []
    job = _job(clock)
    for _ in range(7):
        seen.append((job.step.state, job.step.position, job.step.done))
        clock.advance(1)
    assert seen == [
        (IN_QUEUE, 2, 0),
        (IN_QUEUE, 1, 0),
        (IN_QUEUE, 0, 0),
        (IN_PROGRESS, 0, 1),
        (IN_PROGRESS, 0, 2),
        (IN_PROGRESS, 0, 3),
        (COMPLETED, 0, 4),
    ]
    assert job.compute_seconds == 3
    assert (await job.answer()).body == {"output": "yes"}


async def test_an_empty_queue_still_shows_position_zero_at_submit() -> None:
    steps = queued_steps(Timing(queue_positions=0))
    assert (steps[0].state, steps[0].position) == (IN_QUEUE, 0)
    assert (steps[1].state, steps[1].at) == (IN_PROGRESS, 0)


@pytest.mark.parametrize("state", [IN_QUEUE, IN_PROGRESS])
async def test_a_held_job_stays_in_its_state_until_it_may_go(state: str) -> None:
    clock = MovableClock()
    job = _job(clock, PACE.override({"hold": state}))
    clock.advance(1000)
    assert job.step.state == state
    assert job.as_json()["held"]
    job.go()
    assert job.step.state == state
    clock.advance(1000)
    assert job.step.state == COMPLETED


async def test_a_hold_keeps_the_job_at_its_step() -> None:
    clock = MovableClock()
    job = _job(clock)
    clock.advance(1)
    job.hold()
    clock.advance(1000)
    assert (job.step.state, job.step.position) == (IN_QUEUE, 1)


async def test_a_job_can_be_moved_forth_and_back() -> None:
    job = _job(MovableClock())
    job.hold(IN_PROGRESS)
    assert job.step.state == IN_PROGRESS
    job.hold(IN_QUEUE)
    assert job.step.state == IN_QUEUE
    job.end()
    assert job.step.state == COMPLETED
    with pytest.raises(ValueError, match="COMPLETED"):
        job.hold(IN_QUEUE)


async def test_an_end_by_hand_keeps_the_given_verdict() -> None:
    job = _job(MovableClock())
    job.end(platform_failure("runner_disconnected"))
    job.end()
    assert (await job.wait_for_answer()).status == 503


async def test_cancel_is_heeded_once_and_only_by_apps_that_do() -> None:
    clock = MovableClock()
    job = _job(clock)
    assert job.cancel()
    assert not job.cancel()
    assert (await job.answer()).status == 499
    stubborn = _job(clock, PACE.override({"heeds_cancel": False, "queue_positions": 0}))
    assert stubborn.cancel()
    clock.advance(1000)
    assert (await stubborn.answer()).status == 200


async def test_a_job_that_cannot_start_in_time_fails_at_its_deadline() -> None:
    clock = MovableClock()
    late, early = _job(clock, within=2), _job(clock, within=4)
    clock.advance(2)
    assert late.step.state == COMPLETED
    assert (await late.answer()).headers["x-fal-request-timeout-type"] == "user"
    clock.advance(10)
    assert (await early.answer()).status == 200


async def test_a_watcher_sees_every_step_however_late_it_wakes() -> None:
    clock = MovableClock()
    job = _job(clock)
    watch = job.watch()
    first = await anext(watch)
    clock.advance(1000)
    rest = [step async for step in watch]
    assert first is not None
    assert [step.state for step in rest if step] == [IN_QUEUE] * 2 + [IN_PROGRESS] * 3 + [COMPLETED]


async def test_a_watcher_of_a_finished_job_sees_one_step() -> None:
    job = _job(MovableClock())
    job.end()
    assert [step.state async for step in job.watch() if step] == [COMPLETED]


async def test_a_watcher_sees_a_job_that_is_moved_by_hand() -> None:
    job = _job(MovableClock(), PACE.override({"hold": IN_QUEUE}))
    watch = job.watch()
    await anext(watch)
    following = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0)
    job.cancel()
    step = await following
    assert step is not None and step.state == COMPLETED


@pytest.mark.parametrize("tick", [0.003, 0.01, 0.03, 0.07])
async def test_no_step_is_missed_when_time_passes_between_two_looks(tick: float) -> None:
    clock = MovableClock()

    def now() -> float:
        clock.advance(tick)
        return clock.now()

    endpoint = built_in().get("fal-ai/llava-next")
    assert endpoint is not None
    pace = Timing(queue_positions=3, seconds_per_position=0.01, run_seconds=0.03)
    watched, awaited = (
        Job("queue", endpoint, queued_steps(pace), asyncio.create_task(_answer()), timing=pace, clock=now)
        for _ in range(2)
    )
    with anyio.fail_after(60):
        assert [step.state async for step in watched.watch() if step][-1] == COMPLETED
        assert (await awaited.wait_for_answer()).status == 200


async def test_a_job_that_waits_for_looks_shows_every_step_for_its_whole_time() -> None:
    clock = MovableClock()
    job, seen = _job(clock, PACE.override({"wait_for_looks": True})), []
    for _ in range(7):
        clock.advance(1000)
        seen.append((job.look().state, job.step.position, job.step.done))
        clock.advance(0.9)
        assert (job.step.state, job.step.position, job.step.done) == seen[-1]
    assert [(state, position) for state, position, _ in seen[:4]] == [
        (IN_QUEUE, 2),
        (IN_QUEUE, 1),
        (IN_QUEUE, 0),
        (IN_PROGRESS, 0),
    ]
    assert [done for *_, done in seen] == [0, 0, 0, 1, 2, 3, 4]


async def test_a_watched_job_that_waits_for_looks_comes_to_its_end() -> None:
    job = _job(MovableClock(), Timing(seconds_per_position=0, run_seconds=0, wait_for_looks=True))
    with anyio.fail_after(60):
        assert [step.done async for step in job.watch() if step] == [0, 0, 1, 2, 3, 4]


async def test_a_job_moved_by_hand_and_a_run_do_not_wait_for_polls() -> None:
    clock, pace = MovableClock(), PACE.override({"wait_for_looks": True})
    ended, held = _job(clock, pace), _job(clock, pace)
    ended.end()
    held.hold(IN_PROGRESS)
    clock.advance(1)
    assert (ended.step.state, held.step.state) == (COMPLETED, IN_PROGRESS)
    held.go()
    clock.advance(10)
    assert held.step.state == COMPLETED
    run = Job("run", ended.endpoint, direct_steps(pace), asyncio.create_task(_answer()), timing=pace, clock=clock.now)
    clock.advance(10)
    assert run.step.state == COMPLETED


def test_a_stream_has_a_step_for_each_word_and_a_run_has_none() -> None:
    assert [step.done for step in streamed_steps(Timing(), 3)] == [0, 0, 1, 2, 3]
    assert [step.state for step in direct_steps(Timing())] == [IN_QUEUE, IN_PROGRESS, COMPLETED]


async def test_the_oldest_job_is_forgotten_beyond_the_bound() -> None:
    jobs = Jobs(keeps=2)
    first, *rest = [jobs.add(_job(MovableClock())) for _ in range(3)]
    assert jobs.get(first.id) is None
    assert list(jobs) == rest


@pytest.mark.parametrize(
    "values",
    [{"speed": 1}, {"hold": "COMPLETED"}, {"queue_positions": -1}, {"words_per_second": 0}, {"run_seconds": "soon"}],
)
def test_a_malformed_pace_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        Timing().override(values)


def test_a_pace_takes_the_words_of_a_marker() -> None:
    pace = Timing().override({"queue_positions": "5", "run_seconds": "1.5", "heeds_cancel": "no", "hold": "IN_QUEUE"})
    assert pace == Timing(queue_positions=5, run_seconds=1.5, heeds_cancel=False, hold="IN_QUEUE")
