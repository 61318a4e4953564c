"""How much memory the bodies of all requests take together, so that no caller can use up the process."""

from __future__ import annotations

from collections import Counter

from starlette.types import Scope

from proxy.errors import Overloaded
from proxy.networks import network

#: Bodies up to this size are not counted: their connections are bounded, and nearly all calls are of this kind.
FREE_BYTES = 64 * 1024
#: Of all bytes, the part that one address may hold.
ADDRESS_SHARE = 4
#: In the state of a request: the bytes that it holds.
HELD = "held_bytes"
#: When memory frees is not known; this is a moment to try again.
RETRY_SECONDS = 1.0


class BodyMemory:
    """Counts the bytes of bodies from their arrival to the beginning of the answer."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._most_per_address = max(1, most // ADDRESS_SHARE)
        self._by_address: Counter[str] = Counter()
        self.held = 0

    def hold(self, scope: Scope, size: int) -> None:
        """Count more bytes of a request.

        Raises:
            Overloaded: this process, or the caller's address, holds as many as it may.
        """
        address = network(scope.get("client"))
        is_over_share = self._by_address[address] + size > self._most_per_address
        if is_over_share or self.held + size > self._most:
            raise Overloaded(
                "Too many large bodies are arriving; send this one again shortly, or upload the picture.",
                retry_after=RETRY_SECONDS,
                scope="ip" if is_over_share else None,
            )
        self.held += size
        self._by_address[address] += size
        scope["state"][HELD] = scope["state"].get(HELD, 0) + size

    def release(self, scope: Scope) -> None:
        """Forget what a request held: its answer begins, or it ends without one."""
        size = scope["state"].pop(HELD, 0)
        if size:
            address = network(scope.get("client"))
            self.held -= size
            self._by_address[address] -= size
            if not self._by_address[address]:
                del self._by_address[address]
