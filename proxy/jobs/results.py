"""The results of jobs. Callers who ask at the same moment share one request to fal; small results are cached."""

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

    def find_cached(self, request_id: str) -> BufferedResponse | None:
        """Return a result from memory; None if it is not there."""
        return self._cached.get(request_id)

    async def get(self, request_id: str, fetch: Fetch) -> BufferedResponse:
        """Return the result of a job, from memory or from fal.

        Raises:
            ProxyError: whatever `fetch` raises.
        """
        if (cached := self.find_cached(request_id)) is not None:
            return cached
        return await self._flights.run(request_id, partial(self._fetch, request_id, fetch))

    async def _fetch(self, request_id: str, fetch: Fetch) -> BufferedResponse:
        """Fetch a result, and cache it before any caller gets it, so that the next one finds it."""
        result = await fetch()
        if _is_final(result) and len(result.body) <= LARGEST_BYTES:
            self._cached[request_id] = result
        return result


def _size_of(result: BufferedResponse) -> int:
    # With the objects around the body.
    return len(result.body) + 1024


def _is_final(result: BufferedResponse) -> bool:
    """Return whether fal will always give this answer. While the job runs, or after a failure of fal's, it will not."""
    return 200 <= result.status < 300 or result.status == 422
