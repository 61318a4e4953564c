"""The sessions that are revoked, as this process knows them."""

from __future__ import annotations

from collections.abc import Iterable

from proxy.stores.directory import Revocation

#: Revocations that are added before those that have expired are looked for again, at least.
SWEEP_EVERY = 10_000


class RevokedSessions:
    """A set that only grows, apart from what has expired: adding costs the same, however many there are."""

    def __init__(self) -> None:
        #: When the revocation of a session expires, by tenant and session.
        self._sessions: dict[tuple[str, str], float] = {}
        #: Before when a subject's sessions were issued that are revoked, and when that expires.
        self._subjects: dict[tuple[str, str], tuple[float, float]] = {}
        self._until_sweep = SWEEP_EVERY

    def __len__(self) -> int:
        return len(self._sessions) + len(self._subjects)

    def __contains__(self, session: tuple[str, str, str, float]) -> bool:
        """Whether a session is revoked, given as tenant, subject, session and when it was issued."""
        tenant, subject, session_id, issued_at = session
        if (tenant, session_id) in self._sessions:
            return True
        found = self._subjects.get((tenant, subject))
        return found is not None and issued_at <= found[0]

    def add(self, revocations: Iterable[Revocation], now: float) -> None:
        for one in revocations:
            if one.session_id is not None:
                key = (one.tenant, one.session_id)
                self._sessions[key] = max(one.expires_at, self._sessions.get(key, 0.0))
            if one.subject is not None:
                key = (one.tenant, one.subject)
                before, until = self._subjects.get(key, (one.issued_before, 0.0))
                self._subjects[key] = (max(one.issued_before, before), max(one.expires_at, until))
            self._until_sweep -= 1
        if self._until_sweep <= 0:
            self._sweep(now)

    def _sweep(self, now: float) -> None:
        self._sessions = {key: until for key, until in self._sessions.items() if until >= now}
        self._subjects = {key: found for key, found in self._subjects.items() if found[1] >= now}
        self._until_sweep = max(SWEEP_EVERY, len(self))
