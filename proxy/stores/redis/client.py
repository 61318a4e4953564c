"""The commands to Redis, its scripts, and what its trouble means."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from hiredis import pack_command
from redis.asyncio import ConnectionPool
from redis.exceptions import (
    BusyLoadingError,
    ConnectionError,
    MasterDownError,
    MovedError,
    NoScriptError,
    ReadOnlyError,
    RedisError,
)

from proxy.errors import StoreUnavailable
from proxy.stores.redis.cluster import Route
from proxy.stores.redis.diagnosis import diagnose
from proxy.stores.redis.pipeline import ANSWER_SECONDS, Pipeline
from proxy.telemetry.log_limit import LogLimit

#: The hash tag puts all keys in one slot of a Redis Cluster: a step needs several keys at once.
PREFIX = "{fal-proxy}:"
#: Leases in one step; Redis does nothing else meanwhile.
_MOST_AT_ONCE = 500
#: What a server answers that is not the primary, or not yet; and a connection that it closed, as a restart does with
#: all of them. The step is sent again, over a new connection, which leads to the primary once the name in the URL does.
#: A step that was done already does nothing the second time.
_TRIED_AGAIN = (ReadOnlyError, BusyLoadingError, MasterDownError, MovedError, ConnectionError)
#: Twice: the first leads away from a node of a cluster that is gone, the second to the one that has its keys now.
_TIMES = 2
_Word = str | int | float
# Its own types know commands of one word only.
_pack: Callable[[tuple[_Word, ...]], bytes] = pack_command  # type: ignore[assignment]
_FOLDER = Path(__file__).parent
_log = logging.getLogger(__name__)


class Script(NamedTuple):
    """A script, and the name that Redis gives it."""

    text: str
    digest: str

    @classmethod
    def read(cls, name: str) -> Script:
        """Read a script of this folder."""
        text = (_FOLDER / f"{name}.lua").read_text()
        return cls(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


class RedisClient:
    """Sends commands over one connection, which opens with the first of them and again after it was lost."""

    def __init__(self, url: str) -> None:
        # Only makes connections: of the URL, with all that its query may say.
        self._pool: Any = ConnectionPool.from_url(
            url,
            socket_timeout=ANSWER_SECONDS,
            socket_connect_timeout=ANSWER_SECONDS,
            # No handshake: it takes longer than a step.
            driver_info=None,
        )
        options = self._pool.connection_kwargs
        # The answers are read as those of this protocol.
        options["protocol"] = 2
        self._route = Route(options.get("host", "localhost"), options.get("port", 6379))
        self._pipeline: Pipeline | None = None
        #: Those with an open connection: this one, and those that wait for their last answers.
        self._connected: set[Pipeline] = set()
        self._opening: asyncio.Task[Pipeline] | None = None
        self._is_closed = False
        self._log_limit = LogLimit()

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[_Word]) -> Any:
        """Run a script.

        Raises:
            StoreUnavailable: Redis does not answer, or refuses.
        """
        command = _pack(("EVALSHA", script.digest, len(keys), *keys, *args))
        try:
            return await self._execute(command)
        except NoScriptError:
            await self.send("SCRIPT", "LOAD", script.text)
        return await self._execute(command)

    async def send(self, *command: str) -> Any:
        """Send a command.

        Raises:
            StoreUnavailable: Redis does not answer, or refuses.
        """
        return await self._execute(_pack(command))

    async def close(self) -> None:
        """Close all connections. A command that is under way fails, and opens no other."""
        self._is_closed = True
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.gather(self._opening, return_exceptions=True)
        await asyncio.gather(*(pipeline.close() for pipeline in self._connected))

    async def _execute(self, command: bytes) -> Any:
        """Send a command, and turn the driver's trouble into ours, without its text: that may name the server."""
        pipeline = self._pipeline
        try:
            if pipeline is None or not pipeline.is_open:
                async with asyncio.timeout(2 * ANSWER_SECONDS):
                    return await self._try(command, 1 + _TIMES)
            try:
                return await pipeline.send(command)
            except _TRIED_AGAIN as problem:
                self._leave(pipeline, problem)
            # Together as long as without a connection: an answer takes ANSWER_SECONDS at most.
            async with asyncio.timeout(ANSWER_SECONDS):
                return await self._try(command, _TIMES)
        except NoScriptError:
            raise
        except (RedisError, OSError, TimeoutError) as problem:
            raise self._report(problem) from None

    def _report(self, problem: Exception) -> StoreUnavailable:
        """Log a failure, once a minute for each kind: each call fails while Redis is away."""
        trouble, name = diagnose(problem), type(problem).__name__
        if failures := self._log_limit.count((name, trouble.message)):
            fields = {"problem": name, "reason": trouble.message, "failures": failures}
            _log.error("counters failed", extra={"log_fields": fields})
        return trouble

    async def _try(self, command: bytes, times: int) -> Any:
        """Send a command so many times at most, each time over another connection."""
        while True:
            times -= 1
            pipeline = None
            try:
                pipeline = await self._open()
                return await pipeline.send(command)
            except _TRIED_AGAIN as problem:
                if pipeline is not None:
                    self._leave(pipeline, problem)
                if not times:
                    raise

    def _leave(self, pipeline: Pipeline, problem: Exception) -> None:
        """Let the next command go over another connection, to where the problem leads."""
        pipeline.retire()
        if isinstance(problem, MovedError):
            self._route.follow(problem)

    async def _open(self) -> Pipeline:
        """Give the open connection, or open one; once, however many wait for it."""
        if self._is_closed:
            raise ConnectionError("The client is closed.")
        if self._pipeline is not None and self._pipeline.is_open:
            return self._pipeline
        if self._opening is None:
            self._opening = asyncio.create_task(self._connect())
            self._opening.add_done_callback(self._end_opening)
        return await asyncio.shield(self._opening)

    def _end_opening(self, opening: asyncio.Task[Pipeline]) -> None:
        self._opening = None
        # Its callers may be gone: asyncio logs a problem that is never looked at.
        if not opening.cancelled():
            opening.exception()

    async def _connect(self) -> Pipeline:
        connection = self._pool.make_connection()
        connection.host, connection.port = self._route.address
        try:
            # redis-py knows TLS, users and databases; then only its stream is needed.
            await connection.connect()
        except BaseException as problem:
            # One that is cancelled would leave its stream to the collector.
            if connection._writer is not None:
                connection._writer.close()
            if isinstance(problem, Exception):
                self._route.begin_again()
            raise
        stream, connection._reader, connection._writer = connection._writer, None, None
        if stream.transport.is_closing():
            raise ConnectionError("The connection was lost.")
        self._pipeline = pipeline = Pipeline(stream)
        self._connected.add(pipeline)
        pipeline.closed.add_done_callback(lambda _: self._connected.discard(pipeline))
        return pipeline


def batches(leases: Mapping[str, Sequence[str]]) -> Iterator[Mapping[str, Sequence[str]]]:
    """Cut leases into pieces that one step can take."""
    rest = iter(leases.items())
    while some := dict(islice(rest, _MOST_AT_ONCE)):
        yield some


def sizes(leases: Mapping[str, Sequence[str]]) -> list[str | int]:
    """List each lease and the number of its scopes, one after the other, as the scripts take them."""
    return [item for lease, keys in leases.items() for item in (lease, len(keys))]
