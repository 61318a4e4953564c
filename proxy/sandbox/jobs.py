"""Jobs: where each stands is a function of the time that has passed, so that none needs a task to move it.

A job is a list of steps, each with the second at which it is reached. A look computes the step from the clock;
a watcher sleeps until the next one. A test moves a job by hand: it can be held, let go, moved and ended. A job with
`wait_for_looks` leaves no step that was not shown.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import anyio

from proxy.catalog import Endpoint
from proxy.sandbox.answers import Answer, platform_failure
from proxy.sandbox.faults import Fault
from proxy.sandbox.timing import COMPLETED, IN_PROGRESS, IN_QUEUE, STATES, Timing

KEPT_JOBS = 20_000
LOG_LINES = ("Loading the picture", "Looking at the picture", "Writing the answer", "Done")


@dataclass(frozen=True)
class Step:
    """One point of a job's way: reached `at` seconds after the start, with `done` log lines or words so far."""

    at: float
    state: str
    position: int = 0
    done: int = 0


def queued_steps(timing: Timing) -> list[Step]:
    """List the steps of a submitted job: down the queue, through the run with a log line each third, to the end."""
    wait = timing.seconds_per_position
    positions = max(timing.queue_positions, 1)
    start = timing.queue_positions * wait
    working = len(LOG_LINES) - 1
    return [
        *(Step(i * wait, IN_QUEUE, positions - 1 - i) for i in range(positions)),
        *(Step(start + i / working * timing.run_seconds, IN_PROGRESS, done=i + 1) for i in range(working)),
        Step(start + timing.run_seconds, COMPLETED, done=len(LOG_LINES)),
    ]


def direct_steps(timing: Timing) -> list[Step]:
    """List the steps of a direct run: no queue, perhaps a wait for a runner."""
    start = timing.start_seconds
    return [Step(0, IN_QUEUE), Step(start, IN_PROGRESS), Step(start + timing.run_seconds, COMPLETED)]


def streamed_steps(timing: Timing, words: int) -> list[Step]:
    """List the steps of a model stream: one for each word."""
    start, word = timing.start_seconds, 1 / timing.words_per_second
    writing = [Step(start + i * word, IN_PROGRESS, done=i) for i in range(words)]
    return [Step(0, IN_QUEUE), *writing, Step(start + words * word, COMPLETED, done=words)]


class Job:
    """One piece of work, submitted (`queue`) or direct (`run`, `stream`).

    Args:
        work: computes the answer; started at once, waited for when the job is due.
        start_within: seconds after which a job that has not started fails with fal's `request_timeout`.
    """

    def __init__(
        self,
        kind: str,
        endpoint: Endpoint,
        steps: list[Step],
        work: asyncio.Task[Answer],
        *,
        timing: Timing,
        start_within: float | None = None,
        faults: tuple[Fault, ...] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.id = str(uuid.uuid4())
        self.kind = kind
        self.endpoint = endpoint
        self.timing = timing
        self.faults = faults
        self.created = time.time()
        self._clock = clock
        self._zero = clock()
        self._steps = steps
        self._work = work
        self._verdict: Answer | None = None
        self._moved = anyio.Event()
        started = next(step.at for step in steps if step.state != IN_QUEUE)
        if start_within is not None and started > start_within:
            self._verdict = platform_failure("request_timeout", "Request timed out before it could start")
            self._steps = [step for step in steps if step.at < start_within] + [Step(start_within, COMPLETED)]
        #: The number of the step that the job may not pass yet.
        self._stop = self._last_of(timing.hold or COMPLETED)
        #: The number of the last step that a look has shown; all, if the job waits for no looks.
        self._shown = -1 if kind == "queue" and timing.wait_for_looks else len(steps)

    @property
    def index(self) -> int:
        """The number of the step that is reached."""
        due = bisect_right(self._steps, self._clock() - self._zero, key=lambda step: step.at) - 1
        return min(due, self._limit)

    @property
    def _limit(self) -> int:
        return min(self._stop, self._shown + 1)

    def look(self) -> Step:
        """Show a caller the step that is reached."""
        return self._show(self.index)

    def _show(self, index: int) -> Step:
        step = self._steps[index]
        if index > self._shown:
            self._shown = index
            self._zero = self._clock() - step.at
            self._notify()
        return step

    @property
    def first(self) -> Step:
        return self._steps[0]

    @property
    def step(self) -> Step:
        return self._steps[self.index]

    async def answer(self) -> Answer:
        """Return the outcome of the run; wait for the model if the clock was faster."""
        if self._verdict is not None:
            return self._verdict
        return await asyncio.shield(self._work)

    @property
    def compute_seconds(self) -> float:
        started = next((step.at for step in self._steps if step.state == IN_PROGRESS), self._steps[-1].at)
        return round(self._steps[-1].at - started, 6)

    def time_of(self, done: int) -> float:
        """Return the time of day at which so many log lines or words were done."""
        return self.created + next((step.at for step in self._steps if step.done >= done), self._steps[-1].at)

    async def change(self, seen: int, at_most: float = float("inf")) -> None:
        """Return when the job is at another step than the one seen, or after `at_most` seconds.

        It wakes too when the job is moved by hand. What was seen is given, not looked up: the clock goes on between
        the look and the wait, and a second look would wait for a step that has passed.
        """
        if self.index != seen:
            return
        due = self._steps[seen + 1].at - (self._clock() - self._zero) if seen < self._limit else float("inf")
        with anyio.move_on_after(max(0, min(due, at_most))):
            await self._moved.wait()

    async def reaches(self, state: str) -> None:
        """Wait until the job is in this state, or past it."""
        index = self.index
        while STATES.index(self._steps[index].state) < STATES.index(state):
            await self.change(index)
            index = self.index

    async def wait_for_answer(self) -> Answer:
        await self.reaches(COMPLETED)
        return await self.answer()

    async def watch(self, *, from_start: bool = False) -> AsyncIterator[Step | None]:
        """Yield every step to the end, from the one that is reached now; None after `ping_seconds` without any."""
        seen = 0 if from_start else self.index
        step = self._show(seen)
        yield step
        quiet_since = self._clock()
        while step.state != COMPLETED:
            await self.change(seen, quiet_since + self.timing.ping_seconds - self._clock())
            now = self.index
            news = self._steps[seen + 1 : now + 1] if now >= seen else [self._steps[now]]
            for step in news:
                yield step
            seen = now
            self._show(seen)
            if news or self._clock() - quiet_since >= self.timing.ping_seconds:
                quiet_since = self._clock()
                if not news:
                    yield None

    def cancel(self) -> bool:
        """Ask the job to stop; False if it was completed already."""
        if self.step.state == COMPLETED:
            return False
        if self.timing.heeds_cancel or self.step.state == IN_QUEUE:
            self.end(platform_failure("client_cancelled", "Request was cancelled"))
        return True

    def end(self, verdict: Answer | None = None) -> None:
        """Complete the job now, with the model's own answer unless another is given."""
        if self.step.state == COMPLETED:
            return
        here, done = self.index, self._steps[-1].done if verdict is None else self.step.done
        now = max(self._clock() - self._zero, self._steps[here].at)
        self._steps = [*self._steps[: here + 1], Step(now, COMPLETED, done=done)]
        self._verdict = verdict or self._verdict
        self._move_to(here + 1)

    def hold(self, state: str | None = None) -> None:
        """Move the job to the first step of a state and keep it in that state; or keep it at the step it is at.

        Raises:
            ValueError: the job is completed, or never comes to that state.
        """
        first = next((step.at for step in self._steps if step.state == state), None)
        if self.step.state == COMPLETED or state == COMPLETED or (state and first is None):
            raise ValueError(f"a job that is {self.step.state} cannot be held {state or 'there'}")
        if first is not None and state != self.step.state:
            self._zero = self._clock() - first
        self._move_to(self._last_of(state) if state else self.index)

    def go(self) -> None:
        """Go on from the step that the job is held at, at its own pace."""
        self._zero = self._clock() - self.step.at
        self._move_to(len(self._steps) - 1)

    def as_json(self) -> dict[str, Any]:
        step = self.step
        return {
            "id": self.id,
            "kind": self.kind,
            "endpoint": self.endpoint.id,
            "created": self.created,
            "status": step.state,
            "queue_position": step.position if step.state == IN_QUEUE else None,
            "held": self._stop < len(self._steps) - 1,
        }

    def _last_of(self, state: str) -> int:
        latest = STATES.index(state)
        return max(i for i, step in enumerate(self._steps) if STATES.index(step.state) <= latest)

    def _move_to(self, stop: int) -> None:
        """Let the job, moved by hand, go as far as `stop` from now on, without waiting for looks."""
        self._stop, self._shown = stop, len(self._steps)
        self._notify()

    def _notify(self) -> None:
        self._moved.set()
        self._moved = anyio.Event()


class Jobs:
    """All jobs by id, oldest first; beyond a bound the oldest is forgotten."""

    def __init__(self, keeps: int = KEPT_JOBS) -> None:
        self._keeps = keeps
        self._by_id: OrderedDict[str, Job] = OrderedDict()

    def add(self, job: Job) -> Job:
        self._by_id[job.id] = job
        if len(self._by_id) > self._keeps:
            self._by_id.popitem(last=False)
        return job

    def get(self, id: str) -> Job | None:
        return self._by_id.get(id)

    def forget(self, id: str) -> None:
        self._by_id.pop(id, None)

    def count_waiting(self, app: str) -> int:
        """Count the submitted jobs of an app that wait in its queue."""
        queued = (job for job in self if job.kind == "queue" and job.endpoint.app == app)
        return sum(job.step.state == IN_QUEUE for job in queued)

    def __iter__(self) -> Iterator[Job]:
        return iter(list(self._by_id.values()))
