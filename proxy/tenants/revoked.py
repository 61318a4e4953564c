"""The sessions that are revoked, as this process knows them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from proxy.stores.directory import Revocation, digest_subject

#: Revocations that are added before those that have expired are looked for again, at least.
SWEEP_EVERY = 10_000


class RevokedSessions:
    """A set that only grows, apart from what has expired: adding costs the same, however many there are."""

    def __init__(self) -> None:
        #: When the revocation of a session expires, by tenant and session.
        self._sessions: dict[tuple[str, str], float] = {}
        #: Before when a subject's sessions were issued that are revoked, and when that expires.
        self._subjects: dict[tuple[str, str], tuple[float, float]] = {}
        #: The same of subjects that are forgotten, by their digests.
        self._digests: dict[str, tuple[float, float]] = {}
        #: How often a subject was forgotten.
        self.forgotten = 0
        self._until_sweep = SWEEP_EVERY

    def __len__(self) -> int:
        return len(self._sessions) + len(self._subjects) + len(self._digests)

    def __contains__(self, session: tuple[str, str, str, float]) -> bool:
        """Whether a session is revoked, given as tenant, subject, session and when it was issued."""
        tenant, subject, session_id, issued_at = session
        if (tenant, session_id) in self._sessions:
            return True
        found = self._subjects.get((tenant, subject))
        if found is not None and issued_at <= found[0]:
            return True
        found = self._digests.get(digest_subject(tenant, subject)) if self._digests else None
        return found is not None and issued_at <= found[0]

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
            self._until_sweep -= 1
        if self._until_sweep <= 0:
            self._sweep(now)

    def _sweep(self, now: float) -> None:
        self._sessions = {key: until for key, until in self._sessions.items() if until >= now}
        self._subjects = {key: found for key, found in self._subjects.items() if found[1] >= now}
        self._digests = {key: found for key, found in self._digests.items() if found[1] >= now}
        self._until_sweep = max(SWEEP_EVERY, len(self))


_Key = TypeVar("_Key")


def _extend(revoked: dict[_Key, tuple[float, float]], key: _Key, one: Revocation) -> None:
    before, until = revoked.get(key, (one.issued_before, 0.0))
    revoked[key] = (max(one.issued_before, before), max(one.expires_at, until))
