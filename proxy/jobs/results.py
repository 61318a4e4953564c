"""The results of jobs: fetched from fal once however many ask at that moment; small ones are cached."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from cachetools import LRUCache

from proxy.singleflight import SingleFlight
from proxy.upstream.relay import BufferedResponse

#: The largest result that is cached, and all of them together, in bytes.
LARGEST_BYTES = 256 * 1024
KEPT_BYTES = 64 * 1024 * 1024
Fetch = Callable[[], Coroutine[Any, Any, BufferedResponse]]


class ResultCache:
    """The results of jobs: the model's own status, the headers that may cross, and its body."""

    def __init__(self) -> None:
        self._cached: LRUCache[str, BufferedResponse] = LRUCache(KEPT_BYTES, getsizeof=_size_of)
        self._flights: SingleFlight[BufferedResponse] = SingleFlight()

    def cached(self, request_id: str) -> BufferedResponse | None:
        """Give a result from memory, if it is there."""
        return self._cached.get(request_id)

    async def get(self, request_id: str, fetch: Fetch) -> BufferedResponse:
        """Give the result of a job, from memory or from fal.

        Raises:
            ProxyError: whatever `fetch` raises.
        """
        if (cached := self.cached(request_id)) is not None:
            return cached
        return await self._flights.run(request_id, partial(self._fetch, request_id, fetch))

    async def _fetch(self, request_id: str, fetch: Fetch) -> BufferedResponse:
        """Fetch a result. It is cached before anyone gets it: a caller who asks a moment later must find it."""
        result = await fetch()
        if _is_final(result) and len(result.body) <= LARGEST_BYTES:
            self._cached[request_id] = result
        return result


def _size_of(result: BufferedResponse) -> int:
    # With what holds the body.
    return len(result.body) + 1024


def _is_final(result: BufferedResponse) -> bool:
    """Whether the same question will always get this answer: not so while the job runs, or when fal failed."""
    return 200 <= result.status < 300 or result.status == 422
