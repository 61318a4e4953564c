"""A job's status stream, followed to the job's end over as many streams of fal's as it takes.

fal's clients take the end of a status stream for the end of the job. So a stream that breaks or falls silent is opened
again, after longer and longer pauses. While it is open, the watch knows as much as fal; else fal answers the polls.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from copy import copy
from typing import Any

from proxy.errors import ProxyError, without_frames
from proxy.jobs.history import History
from proxy.jobs.opening import JobUnknown, Open
from proxy.jobs.updates import COMPLETED, STATES, Update
from proxy.jobs.waiters import Waiters
from proxy.stores.ledger import Job
from proxy.upstream.client import Answer
from proxy.upstream.event_reader import Event, EventReader, StreamBroken

#: The longest pauses before a stream is opened again, by how many in a row brought no news. A pause is a random part of
#: this (full jitter), and a turn to wait for follows it. When more streams than these fail in a row, the readers are
#: cut off.
BACKOFF_SECONDS = (0.1, 0.3, 1.0, 2.0, 5.0, 5.0, 5.0)
#: How many streams may fail before the first event, until an event stream gives up; a poll asks fal after one.
ATTEMPTS = 3
#: How long to wait for the end of a stream after the end of its job.
ENDING_SECONDS = 0.25
_log = logging.getLogger(__name__)

Fetch = Callable[[Job], Awaitable[dict[str, Any] | None]]
OnStatus = Callable[[Job, dict[str, Any]], Awaitable[None]]
WhenOver = Callable[["Watch"], None]


class Watch:
    """Follows a job from `start` to its end or to `close`; readers join it.

    Args:
        open_: opens the job's status stream at fal, as `StreamOpener.open`.
        fetch: asks fal for the status document with all logs, when part of a stream was missed; None without an answer.
        on_status: called with each document before a reader gets it.
        when_over: called before a reader can see that nothing more will come.
        backoff: seconds between attempts to open the stream, as `BACKOFF_SECONDS`.

    Attributes:
        readers: how many event streams read it.
        used_at: when a poll or a stream asked last.
        is_live: whether fal's stream is open, so that `latest` is as new as anything.
    """

    def __init__(
        self,
        job: Job,
        open_: Open,
        fetch: Fetch,
        on_status: OnStatus,
        when_over: WhenOver,
        used_at: float,
        backoff: Sequence[float] = BACKOFF_SECONDS,
    ) -> None:
        self.job = job
        self._open = open_
        self._fetch = fetch
        self._on_status = on_status
        self._when_over = when_over
        self._backoff = backoff
        self._has_tried = False
        self._missed = False
        self._history = History()
        self._failures = 0
        self._fruitless = 0
        self._failure: Exception | None = None
        self._is_over = False
        self._waiters = Waiters()
        self._task: asyncio.Task[None] | None = None
        self.readers = 0
        self.used_at = used_at
        self.is_live = False

    @classmethod
    def from_last(cls, job: Job, last: Update) -> Watch:
        """Make the watch of a job whose end is known. It is never started."""
        watch = cls(job, _refuse_ended, _refuse_ended, _refuse_ended, _ignore, 0)
        watch._history.add(last)
        watch._is_over = True
        return watch

    @property
    def latest(self) -> Update | None:
        return self._history.latest

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come: the job ended, or fal's stream did not come back."""
        return self._is_over

    @property
    def is_trying(self) -> bool:
        """Whether fal's stream is being opened for the first time, and has not failed yet."""
        return self.latest is None and self._failure is None

    def start(self) -> None:
        """Begin to follow."""
        self._task = asyncio.create_task(self._follow())

    def stop(self) -> None:
        """Follow the job no longer; readers are cut off."""
        if self._task is not None:
            self._task.cancel()

    async def wait_for_end(self) -> None:
        """Wait until fal's stream is closed."""
        if self._task is not None:
            await asyncio.wait({self._task})

    def notify(self) -> None:
        """Wake all readers, so that they look for news."""
        self._waiters.notify()

    async def first_update(self, attempts: int = 1, seconds: float = math.inf) -> Update | None:
        """Return the latest update; wait for the first one if there is none yet.

        Args:
            attempts: how many streams may fail meanwhile.
            seconds: how long to wait; None is returned after that.

        Raises:
            ProxyError, StreamBroken: fal's stream could not be opened, or had no event.
        """
        now = asyncio.get_running_loop().time
        gives_up_at = now() + seconds
        while self.latest is None:
            if self._is_over or self._has_failed(attempts):
                raise self._end()
            if (left := gives_up_at - now()) <= 0:
                return None
            await self._waiters.wait(left if left < math.inf else None)
        return self.latest

    def _has_failed(self, attempts: int) -> bool:
        """Return whether so many streams failed in a row."""
        return self._failure is not None and self._failures >= attempts

    def _end(self) -> Exception:
        """Return why nothing more comes. A copy, as an exception that many readers raise keeps all their frames."""
        return copy(self._failure) if self._failure else StreamBroken("the job is not followed any more")

    async def updates(self, after: str | None, wait_seconds: float) -> AsyncGenerator[tuple[Update, int] | None, None]:
        """Yield every update, with the number of the first line that is news in it; None after a while without any.

        It begins after the update with the mark `after`, or else with the latest; a reader who lags too far behind
        misses what lies between. The last update is one that `is_last`.

        Raises:
            ProxyError, StreamBroken: the first word did not come in `ATTEMPTS`, or fal's stream does not come back.
        """
        history, number, lines = self._history, 0, 0
        knows_place = False
        while True:
            if history.count and not knows_place:
                (number, lines), knows_place = history.place_of(after), True
            while number < history.count:
                number, update = history.after(number)
                yield update, min(lines, update.lines)
                if update.is_last:
                    return
                lines = update.lines
            if knows_place and self.latest and self.latest.is_last:
                # A reader who comes back after the last update has them all.
                return
            if self._is_over or (not history.count and self._has_failed(ATTEMPTS)):
                raise self._end()
            await self._waiters.wait(wait_seconds)
            if number == history.count and not self._is_over:
                yield None

    async def _follow(self) -> None:
        try:
            while not (self.latest and self.latest.is_last):
                await self._follow_one_stream()
        except asyncio.CancelledError:
            pass  # By `stop`. Not raised: a task keeps its exception, whose frames would keep the task.
        except Exception as failure:
            self._failure = without_frames(failure)
            if not isinstance(failure, (ProxyError, StreamBroken)):
                _log.exception("job watch failed")
        finally:
            self.is_live = False
            self._is_over = True
            self._when_over(self)
            self.notify()

    async def _follow_one_stream(self) -> None:
        try:
            is_again, self._has_tried = self._has_tried, True
            await self._read(await self._open(self.job, is_again=is_again))
        except JobUnknown:
            raise
        except (ProxyError, StreamBroken) as problem:
            _log.info("status stream broken", extra={"log_fields": {"problem": str(problem)}})
            self._failure = without_frames(problem)
        finally:
            self.is_live = False
        if self.latest and self.latest.is_last:
            return
        self._failures += 1
        self._fruitless += 1
        self.notify()
        if self._failures > len(self._backoff):
            raise StreamBroken("fal's status stream does not come back")
        longest = self._backoff[min(self._fruitless, len(self._backoff)) - 1]
        await asyncio.sleep(random.uniform(0, longest))

    async def _read(self, reply: Answer) -> None:
        self._missed = False
        reader = EventReader(reply, self._miss)
        last: dict[str, Any] | None = None
        try:
            while last is None and not reader.is_over:
                last = await self._take_up(await reader.read())
                if self.latest and self.latest.is_last:
                    return
            if last is not None:
                await self._read_behind(last, reader)
        finally:
            await reply.aclose()
        if last is None:
            raise StreamBroken("it ended before the job did")
        await self._learn(last)

    async def _take_up(self, events: Sequence[Event]) -> dict[str, Any] | None:
        """Learn from events up to the one that the job has ended, which is returned."""
        last = None
        for event in events:
            document = self._parse_update(event.document)
            if document is None or document == last:
                continue
            if last is not None:
                # It comes behind the end of the job, so the order is wrong: log lines may be missing.
                self._miss()
            elif document["status"] == COMPLETED:
                last = document
            else:
                await self._learn(document)
                if self.latest and self.latest.is_last:
                    break
        return last

    async def _read_behind(self, last: dict[str, Any], reader: EventReader) -> None:
        """Read on to the end of the stream, so that its connection can be used again."""
        with contextlib.suppress(StreamBroken, TimeoutError):
            async with asyncio.timeout(ENDING_SECONDS):
                while events := await reader.read():
                    if any(self._parse_update(event.document) not in (None, last) for event in events):
                        self._miss()

    def _parse_update(self, document: Any) -> dict[str, Any] | None:
        if isinstance(document, dict) and document.get("status") in STATES and "request_id" in document:
            # The id that its callers know, whatever fal writes: their URLs are made of it.
            document["request_id"] = self.job.request_id
            return document
        self._miss()
        return None

    def _miss(self) -> None:
        """Note that an event was not understood, or came out of order: log lines may be missing."""
        self._missed, self.is_live = True, False

    async def _learn(self, document: dict[str, Any]) -> None:
        """Take up a document of the stream; or the one that fal gives when asked, if something was missed."""
        if self._missed and (fetched := await self._fetch(self.job)) is not None:
            if document["status"] == COMPLETED != fetched["status"]:
                raise StreamBroken("fal contradicts its stream")
            self._missed, document = False, fetched
        if self._missed and document["status"] == COMPLETED:
            raise StreamBroken("the log of a job that ended is not known")
        await self._on_status(self.job, document)
        self._take(document)

    def _take(self, document: dict[str, Any]) -> None:
        self.is_live = not self._missed
        self._failures, self._failure = 0, None
        if self._history.take(self.job.endpoint, document, has_gap=self._missed):
            self._fruitless = 0
            self.notify()


async def _refuse_ended(*_: Any, **__: Any) -> Any:
    raise StreamBroken("the job has ended")


def _ignore(_: Watch) -> None:
    pass
