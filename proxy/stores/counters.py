"""Rate limits and concurrency leases, as they are counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol


class Window(NamedTuple):
    """One rate limit of one scope: at most `limit` hits in any `seconds`."""

    key: str
    limit: int
    seconds: int


class Hit(NamedTuple):
    """The result of trying several windows at once.

    Attributes:
        refused: the place in the list of the window that is full and frees latest; None if all had room.
        retry_after: seconds until there is room; 0 if there is.
        remaining: hits left, for each window.
        reset_after: seconds until each window's oldest hit leaves it.
    """

    refused: int | None
    retry_after: float
    remaining: tuple[int, ...]
    reset_after: tuple[float, ...]


@dataclass(frozen=True)
class LeaseScope:
    """The leases of one scope."""

    key: str
    limit: int


class LeasesLost(Exception):
    """The counters lost their data since this process last restored its leases: it gets no new ones before it does."""


@dataclass(frozen=True)
class Beat:
    """What a sign of life found.

    Attributes:
        epoch: which life of the data this is; to be adopted once the leases are restored.
        is_empty: the data was lost, with the leases of all processes.
        was_away: this process is new, or was taken for dead: others may have ended its leases.
        dead: holders that gave no sign for too long.
    """

    epoch: str
    is_empty: bool
    was_away: bool
    dead: Sequence[str] = ()


class Holder(Protocol):
    """This process as one that holds leases. What is held by a process that is dead can be ended by another."""

    async def beat(self, now: float, expires_at: float) -> Beat:
        """Give a sign of life, which counts until `expires_at`."""

    def adopt(self, epoch: str) -> None:
        """Take leases under this epoch from now on: those of this process are restored."""

    async def hand_over(self, leases: Sequence[str]) -> None:
        """Let leases outlive this process: fal has their jobs in its queue."""

    async def held_by(self, holder: str) -> Mapping[str, Sequence[str]]:
        """List the leases of a holder, each with its scopes as `free` takes them."""

    async def free(self, holder: str, leases: Mapping[str, Sequence[str]], now: float, expires_at: float) -> None:
        """End leases of a dead holder; one without scopes is left to expire.

        A holder that lives again keeps its own: its sign of life counts from now on, until `expires_at` at the latest.
        """

    async def leave(self) -> None:
        """Be a holder no more: nothing is held."""


class Counters(Protocol):
    """Counts that need no durability: rate limits and leases.

    `now` and `expires_at` are the caller's clock. A store with a clock of its own dates by that, and takes from them
    only how long a lease lasts.
    """

    @property
    def is_shared(self) -> bool:
        """Whether all processes count together."""

    @property
    def holder(self) -> Holder: ...

    async def hit(self, windows: Sequence[Window], now: float, *, counts: bool = True) -> Hit:
        """Count one hit in every window, or in none if one of them is full. One round trip.

        Without `counts` it is only tried: the answer says whether there is room, and nothing is taken.
        """

    def hit_now(self, windows: Sequence[Window], now: float) -> Hit | None:
        """Count as `hit` does, if that needs no waiting; None if it does, and then nothing is counted."""

    async def acquire(self, lease: str, scopes: Sequence[LeaseScope], now: float, expires_at: float) -> int | None:
        """Take a lease of every scope, or of none; the place of a scope that is full, else None. Idempotent.

        Raises:
            LeasesLost: the epoch is not the one that the holder adopted.
        """

    async def renew(self, lease: str, keys: Sequence[str], now: float, expires_at: float) -> None:
        """Keep the leases longer. A lease that was returned or has expired stays so."""

    async def restore(
        self, leases: Mapping[str, Sequence[str]], now: float, expires_at: float, *, holds: bool = False
    ) -> None:
        """Take leases, each with the keys of its scopes, whether or not there is room.

        For calls that are known to be in flight. `holds`: they end with this process.
        """

    async def release(self, lease: str, keys: Sequence[str]) -> None: ...

    async def in_use(self, key: str, now: float) -> int: ...

    async def ping(self) -> None: ...

    async def close(self) -> None: ...
