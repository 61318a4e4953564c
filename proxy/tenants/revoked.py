"""The sessions that are revoked, as this process knows them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, TypeVar

from proxy.stores.directory import Revocation, digest_subject

#: Revocations that are added before those that have expired are looked for again, at least.
SWEEP_EVERY = 10_000


class _Cutoff(NamedTuple):
    """Which sessions are revoked.

    Attributes:
        before: those that were issued up to this moment.
        number: those that were minted when a revocation with a lower number was the newest.
        until: when the revocation expires.
    """

    before: float
    number: int
    until: float

    def covers(self, issued_at: float, newest: int | None) -> bool:
        return issued_at <= self.before or (newest is not None and newest < self.number)


class RevokedSessions:
    """A set that only grows, apart from what has expired: adding costs the same, however many there are."""

    def __init__(self) -> None:
        #: When the revocation of a session expires, by tenant and session.
        self._sessions: dict[tuple[str, str], float] = {}
        #: By tenant and subject.
        self._subjects: dict[tuple[str, str], _Cutoff] = {}
        #: Of subjects that are forgotten, by their digests.
        self._digests: dict[str, _Cutoff] = {}
        #: Of tenants that were deleted; another may have the name by now.
        self._tenants: dict[str, _Cutoff] = {}
        #: How often a subject was forgotten.
        self.forgotten = 0
        self._until_sweep = SWEEP_EVERY

    def __len__(self) -> int:
        return len(self._sessions) + len(self._subjects) + len(self._digests) + len(self._tenants)

    def cover(self, tenant: str, subject: str, session_id: str, issued_at: float, newest: int | None = None) -> bool:
        """Return whether a session is revoked; `newest` is as for `Snapshot.is_revoked`."""
        if (tenant, session_id) in self._sessions:
            return True
        found = self._subjects.get((tenant, subject))
        if found is not None and found.covers(issued_at, newest):
            return True
        found = self._digests.get(digest_subject(tenant, subject)) if self._digests else None
        if found is not None and found.covers(issued_at, newest):
            return True
        found = self._tenants.get(tenant) if self._tenants else None
        return found is not None and found.covers(issued_at, newest)

    def add(self, revocations: Iterable[Revocation], now: float) -> None:
        for one in revocations:
            if one.session_id is not None:
                key = (one.tenant, one.session_id)
                self._sessions[key] = max(one.expires_at, self._sessions.get(key, 0.0))
            if one.subject is not None:
                _extend(self._subjects, (one.tenant, one.subject), one)
            if one.subject_digest is not None:
                self.forgotten += 1
                _extend(self._digests, one.subject_digest, one)
            if one.session_id is one.subject is one.subject_digest is None:
                _extend(self._tenants, one.tenant, one)
            self._until_sweep -= 1
        if self._until_sweep <= 0:
            self._sweep(now)

    def _sweep(self, now: float) -> None:
        self._sessions = {key: until for key, until in self._sessions.items() if until >= now}
        self._subjects = _drop_expired(self._subjects, now)
        self._digests = _drop_expired(self._digests, now)
        self._tenants = _drop_expired(self._tenants, now)
        self._until_sweep = max(SWEEP_EVERY, len(self))


_Key = TypeVar("_Key")


def _extend(revoked: dict[_Key, _Cutoff], key: _Key, one: Revocation) -> None:
    new = _Cutoff(one.issued_before, one.number, one.expires_at)
    known = revoked.get(key, new)
    revoked[key] = _Cutoff(max(new.before, known.before), max(new.number, known.number), max(new.until, known.until))


def _drop_expired(revoked: dict[_Key, _Cutoff], now: float) -> dict[_Key, _Cutoff]:
    return {key: found for key, found in revoked.items() if found.until >= now}
