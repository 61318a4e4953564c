"""What came of jobs: fetched from fal once however many ask at that moment; what is small is kept."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from cachetools import LRUCache

from proxy.jobs.single import Single
from proxy.upstream.relay import Whole

#: The largest result that is kept, and all of them together, in bytes.
LARGEST_BYTES = 256 * 1024
KEPT_BYTES = 64 * 1024 * 1024


class Results:
    """The results of jobs: the model's own status, the headers that may cross, and its body."""

    def __init__(self) -> None:
        self._kept: LRUCache[str, Whole] = LRUCache(KEPT_BYTES, getsizeof=lambda result: len(result.body) + 1024)
        self._single: Single[Whole] = Single()

    def known(self, request_id: str) -> Whole | None:
        return self._kept.get(request_id)

    async def get(self, request_id: str, fetch: Callable[[], Awaitable[Whole]]) -> Whole:
        """The result of a job, from memory or from fal.

        Raises:
            ProxyError: whatever `fetch` raises.
        """
        if (kept := self.known(request_id)) is not None:
            return kept
        return await self._single.do(request_id, lambda: self._fetched(request_id, fetch))

    async def _fetched(self, request_id: str, fetch: Callable[[], Awaitable[Whole]]) -> Whole:
        """Kept before anybody is told: whoever asks a moment after the others must find it."""
        result = await fetch()
        if _is_final(result) and len(result.body) <= LARGEST_BYTES:
            self._kept[request_id] = result
        return result


def _is_final(result: Whole) -> bool:
    """Whether the same question will always get this answer: not so while the job runs, or when fal failed."""
    return 200 <= result.status < 300 or result.status == 422
