"""The connections to Redis, its scripts, and what its trouble means."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, ConnectionError, MasterDownError, MovedError, ReadOnlyError, RedisError

from proxy.errors import StoreUnavailable
from proxy.stores.counters.cluster import follow_moves

#: The hash tag puts all keys in one slot of a Redis Cluster: a step needs several keys at once.
PREFIX = "{fal-proxy}:"
ANSWER_SECONDS = 1.0
_CONNECTIONS = 64
#: Leases in one step; Redis does nothing else meanwhile.
_MOST_AT_ONCE = 500
#: What a server answers that is not the primary, or not yet; and a connection that it closed, as a restart does with
#: all of them. The step is sent again, over a new connection, which leads to the primary once the name in the URL does.
#: A step that was done already does nothing the second time.
_TRIED_AGAIN = (ReadOnlyError, BusyLoadingError, MasterDownError, MovedError, ConnectionError)
#: Twice: the first leads away from a node of a cluster that is gone, the second to the one that has its keys now.
_TIMES = 2
_FOLDER = Path(__file__).parent
_log = logging.getLogger(__name__)


def connect(url: str) -> Any:
    """Make a client of a Redis server; it opens nothing until it is used."""
    # The usual pool refuses callers when all connections are taken; this one lets them wait.
    pool = BlockingConnectionPool.from_url(
        url,
        socket_timeout=ANSWER_SECONDS,
        socket_connect_timeout=ANSWER_SECONDS,
        max_connections=_CONNECTIONS,
        timeout=ANSWER_SECONDS,
        retry=Retry(NoBackoff(), _TIMES, _TRIED_AGAIN),
        # No handshake: it takes longer than a step, and a burst of calls opens all connections at once.
        protocol=2,
        driver_info=None,
    )
    follow_moves(pool)
    return Redis.from_pool(pool)


def script(redis: Any, name: str) -> Any:
    """Read a script of this folder."""
    return redis.register_script((_FOLDER / f"{name}.lua").read_text())


def batches(leases: Mapping[str, Sequence[str]]) -> Iterator[Mapping[str, Sequence[str]]]:
    """Cut leases into pieces that one step can take."""
    rest = iter(leases.items())
    while some := dict(islice(rest, _MOST_AT_ONCE)):
        yield some


def sizes(leases: Mapping[str, Sequence[str]]) -> list[str | int]:
    """Each lease and the number of its pools, one after the other, as the scripts take them."""
    return [item for lease, keys in leases.items() for item in (lease, len(keys))]


@asynccontextmanager
async def translate_errors() -> AsyncIterator[None]:
    """Bounds the wait, and turns the driver's trouble into ours, without its text: that may name the server."""
    try:
        async with asyncio.timeout(2 * ANSWER_SECONDS):
            yield
    except (RedisError, OSError, TimeoutError) as problem:
        _log.error("the counters failed: %s", type(problem).__name__)
        raise StoreUnavailable("The proxy's counters do not answer; try again shortly.") from None
