"""Sessions of the console: short, signed, and good for no more than the admin token that began them.

The cookie never contains the token. It has the id of a named token, or a keyed digest of PROXY_ADMIN_TOKEN, so that
each request finds out whether that token still counts.
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import asdict, dataclass, replace
from typing import Any

from proxy.auth.admin_tokens import AdminTokens, Role, TokenHolder
from proxy.auth.sessions import CONSOLE_SALT, Sessions
from proxy.clock import Clock
from proxy.errors import NotAllowed, SessionExpired, SessionRevoked, Unauthenticated
from proxy.stores.directory import Revocation
from proxy.tenants.directory import Directory

#: A session ends so long after its last request, and so long after it began at the latest.
IDLE_SECONDS, LONGEST_SECONDS = 1800.0, 8 * 3600.0
#: A form to sign in is good for so long.
FORM_SECONDS = 3600.0
#: The owner of revoked sessions of the console. No tenant is called this: it begins with a space.
OWNER = " console"


@dataclass(frozen=True)
class ConsoleSession:
    """What a cookie of the console says.

    Attributes:
        token: the id of the named token, '' for the one of the settings; None before the sign-in.
        proof: a keyed digest of the token of the settings, or of the provider; '' with a named token.
        started_at, expires_at: in seconds since 1970 UTC.
        name, role: of who signed in at the provider; '' with a token.
    """

    id: str
    token: str | None
    proof: str
    started_at: float
    expires_at: float
    name: str = ""
    role: str = ""


class ConsoleSessions:
    """Begins sessions, reads them, and ends them everywhere.

    Args:
        provider: what its sessions depend on: another provider, client or mapping of roles ends them. None for none.
    """

    def __init__(
        self, sessions: Sessions, tokens: AdminTokens, directory: Directory, clock: Clock, provider: str | None = None
    ) -> None:
        self._sessions = sessions
        self._tokens = tokens
        self._directory = directory
        self._clock = clock
        self._provider = provider

    def begin_form(self) -> ConsoleSession:
        """Begin the session that a form to sign in belongs to. It opens no page."""
        now = self._clock.now()
        return ConsoleSession(_new_id(), None, "", now, now + FORM_SECONDS)

    async def sign_in(self, token: str) -> tuple[ConsoleSession, TokenHolder]:
        """Begin a session, always with an id of its own, for the holder of an admin token.

        Raises:
            NotAllowed, StoreUnavailable, Unauthenticated: as `AdminTokens.authenticate`.
        """
        try:
            holder = await self._tokens.authenticate([f"Bearer {token}"])
        except Unauthenticated:
            raise Unauthenticated("This is no admin token, or one that is revoked or has expired.") from None
        now = self._clock.now()
        proof = "" if holder.id else self._proofs()[0]
        return ConsoleSession(_new_id(), holder.id, proof, now, now + IDLE_SECONDS), holder

    def sign_in_as(self, name: str, role: Role) -> tuple[ConsoleSession, TokenHolder]:
        """Begin a session, with an id of its own, for who has signed in at the provider."""
        now = self._clock.now()
        proof = self._provider_proofs()[0]
        session = ConsoleSession(_new_id(), None, proof, now, now + IDLE_SECONDS, name, str(role))
        return session, TokenHolder(name, role)

    def sign(self, session: ConsoleSession) -> str:
        """Sign a session; returns the text of its cookie."""
        return self._sessions.sign_document(asdict(session), CONSOLE_SALT)

    def read(self, text: str) -> ConsoleSession:
        """Read a session from the text of its cookie.

        Raises:
            Unauthenticated: this proxy has not signed it.
            SessionExpired: its time is over.
        """
        session = _read_fields(self._sessions.read_document(text, CONSOLE_SALT))
        if session.expires_at <= self._clock.now():
            raise SessionExpired("The session has expired; sign in again.")
        return session

    async def find_holder(self, session: ConsoleSession) -> TokenHolder:
        """Tell who holds the token that a session was begun with, if both still count.

        Raises:
            Unauthenticated: the token is revoked, replaced or has expired, or no one has signed in.
            SessionRevoked: its holder has signed out.
            StoreUnavailable: the database does not answer.
        """
        if session.token is None and not session.role:
            raise Unauthenticated("Sign in first.")
        snapshot = await self._directory.snapshot()
        if snapshot.is_revoked(OWNER, "", session.id, session.started_at):
            raise SessionRevoked("You have signed out; sign in again.")
        if session.role:
            if not _is_among(session.proof, self._provider_proofs()):
                raise Unauthenticated("The provider of this session, or its roles, have changed; sign in again.")
            return TokenHolder(session.name, Role[session.role.upper()])
        if session.token:
            return await self._tokens.find_holder(session.token)
        if not _is_among(session.proof, self._proofs()):
            raise Unauthenticated("The admin token of this session is not the proxy's any more; sign in again.")
        return TokenHolder.of_setting()

    def renew(self, session: ConsoleSession) -> ConsoleSession | None:
        """Extend a session of which half is over; None if it has enough time left, or can have no more."""
        now = self._clock.now()
        expires_at = min(now + IDLE_SECONDS, session.started_at + LONGEST_SECONDS)
        if session.expires_at - now > IDLE_SECONDS / 2 or expires_at <= session.expires_at:
            return None
        return replace(session, expires_at=expires_at)

    async def sign_out(self, session: ConsoleSession) -> None:
        """End a session in every process, for copies of its cookie too.

        Raises:
            StoreUnavailable: the database does not answer.
        """
        until = session.started_at + LONGEST_SECONDS
        revocation = Revocation(OWNER, session.id, None, issued_before=self._clock.now(), expires_at=until)
        await self._directory.revoke(revocation, by=None)

    def csrf_token(self, session: ConsoleSession) -> str:
        """Return the token that each form of a session carries, and that other sites do not know."""
        return self._csrf_tokens(session)[0]

    def check_csrf(self, session: ConsoleSession, given: str) -> None:
        """Make sure that a form comes from a page of this session.

        Raises:
            NotAllowed: it does not.
        """
        if not any(hmac.compare_digest(given.encode(), token.encode()) for token in self._csrf_tokens(session)):
            raise NotAllowed("The form does not belong to this session; load the page again and repeat the change.")

    def _csrf_tokens(self, session: ConsoleSession) -> list[str]:
        return self._digests(f"csrf {session.id}")

    def _proofs(self) -> list[str]:
        hashed = self._tokens.hash_setting()
        return [] if hashed is None else self._digests(f"token {hashed}")

    def _provider_proofs(self) -> list[str]:
        return [] if self._provider is None else self._digests(f"provider {self._provider}")

    def _digests(self, text: str) -> list[str]:
        """Return the digest of a text under the key of each secret, newest first."""
        return [hmac.digest(key, text.encode(), "sha256").hex() for key in self._sessions.derive_keys(CONSOLE_SALT)]


def _is_among(given: str, digests: list[str]) -> bool:
    return any(hmac.compare_digest(given, digest) for digest in digests)


def _new_id() -> str:
    return secrets.token_urlsafe(16)


def _read_fields(document: Any) -> ConsoleSession:
    """Read only what `sign` could have written: a signature says who wrote it, not that this version understands it."""
    # Before there were providers, cookies had no name and no role.
    match {"name": "", "role": "", **document} if isinstance(document, dict) else None:
        case {
            "id": str(id_),
            "token": (str() | None) as token,
            "proof": str(proof),
            "started_at": int() | float() as started_at,
            "expires_at": int() | float() as expires_at,
            "name": str(name),
            "role": ("" | "viewer" | "operator" | "admin") as role,
        }:
            return ConsoleSession(id_, token, proof, started_at, expires_at, name, role)
    raise Unauthenticated("The session is not valid; sign in again.")
