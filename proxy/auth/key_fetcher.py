"""Fetching a key set from its issuer: https, from public addresses, a bounded time and size, no redirect."""

from __future__ import annotations

import ssl

from proxy.outbound import Answer, OutboundClient
from proxy.tenants.key_set import MAX_BYTES

FETCH_SECONDS = 5.0


class KeyFetcher:
    """Fetches key sets.

    Args:
        networks: where they may be, beside public addresses.
        ssl_context: what verifies servers; httpx's by default, as for fal.
        seconds: for a whole fetch.
        allows_http: whether they may be there with plain http, where who changes them on their way could sign too.
    """

    def __init__(
        self,
        networks: tuple[str, ...],
        ssl_context: ssl.SSLContext | None = None,
        seconds: float = FETCH_SECONDS,
        *,
        allows_http: bool = False,
    ) -> None:
        setting = "PROXY_ISSUER_NETWORKS"
        self._client = OutboundClient(networks, setting, ssl_context, seconds, allows_http=allows_http)

    async def fetch(self, url: str) -> bytes:
        """Give what lies at a URL.

        Raises:
            OSError: it cannot be reached in time.
            ValueError: it is not https, lies at an internal address, or is too large or another answer than 200.
        """
        answer = await self._client.request("GET", url, {"accept": "application/json"}, most_bytes=MAX_BYTES)
        _check(answer)
        return answer.body


def _check(answer: Answer) -> None:
    if answer.status != 200:
        raise ValueError(f"the answer is {answer.status}; it must be 200, and redirects are not followed")
    if answer.headers.get("content-encoding", "identity") != "identity":
        raise ValueError("the answer is compressed, which was not asked for")
    if len(answer.body) > MAX_BYTES:
        raise ValueError(f"the answer has more than {MAX_BYTES} bytes")
