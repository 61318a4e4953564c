"""Names of good credentials, so that the holder's requests count for the holder and not for the address.

Anyone at an address can send wrong credentials. A right one must not suffer for that, so it is looked at before the
count of the address, as cheaply as it can be: what is signed is verified, and of the rest, memory is asked.
"""

from __future__ import annotations

from contextlib import suppress

from starlette.requests import HTTPConnection
from starlette.types import Scope

from proxy.auth.admin_tokens import AdminTokens
from proxy.auth.cookies import CONSOLE_NAMES, SessionCookie, read_cookie
from proxy.auth.credentials import find_credential
from proxy.auth.identity import IdentityTokens, is_identity_token
from proxy.auth.sessions import CONSOLE_SALT, UPLOAD_SALT, Sessions
from proxy.clock import Clock
from proxy.errors import ProxyError, StoreUnavailable, Unauthenticated
from proxy.tenants import keys
from proxy.tenants.caller import GRACE_SECONDS
from proxy.tenants.directory import Directory
from proxy.upstream.file_urls import CDN_PATH

#: Where jobs are read, which a session that expired a moment ago may.
_JOB_PATHS = ("/api/fal/proxy", "/s/", "/fal/queue/", "/fal/run/", "/v1/jobs/")
_ADMIN_PATH, _CONSOLE_PATH = "/v1/admin/", "/console"


class Recognizer:
    """Names the holders of good credentials. A credential may have been revoked since: its route finds out."""

    def __init__(
        self,
        cookie: SessionCookie,
        sessions: Sessions,
        identity_tokens: IdentityTokens,
        admin_tokens: AdminTokens,
        directory: Directory,
        clock: Clock,
    ) -> None:
        self._cookie = cookie
        self._sessions = sessions
        self._identity_tokens = identity_tokens
        self._admin_tokens = admin_tokens
        self._directory = directory
        self._clock = clock

    async def recognize(self, scope: Scope) -> str | None:
        """Name the credential of a request if its path takes it and it is a good one; None otherwise.

        An identity token that is new here costs the check of its signature. Tenant keys and named admin tokens are read
        from the database every few seconds at the most, however many guesses come.
        """
        try:
            if scope["path"].startswith(_ADMIN_PATH):
                authorization = HTTPConnection(scope).headers.getlist("authorization")
                return f"admin:{(await self._admin_tokens.authenticate(authorization)).name}"
            if scope["path"].startswith(_CONSOLE_PATH):
                return self._recall_operator(HTTPConnection(scope))
            with suppress(StoreUnavailable):
                # Keys that others have made meanwhile; without the database, those of before count.
                await self._directory.snapshot()
            return self.recall(scope) or await self._verify(scope)
        except ProxyError:
            return None

    def recall(self, scope: Scope) -> str | None:
        """Name the credential of a caller from memory, if it is a good one."""
        try:
            place, text = self._find(scope)
            if place == "authorization" and text.startswith(keys.PREFIX):
                return f"key:{keys.verify(text, self._directory.latest.keys).id}"
            if scope["path"].startswith(CDN_PATH):
                return f"session:{self._sessions.verify(text, UPLOAD_SALT).id}"
            known = self._identity_tokens.recall if is_identity_token(text) else self._sessions.verify
            return f"session:{known(text, grace_seconds=_grace_of(scope)).id}"
        except ProxyError:
            return None

    async def _verify(self, scope: Scope) -> str | None:
        """Verify an identity token that is new to this process, and name its session."""
        _, text = self._find(scope)
        if not is_identity_token(text):
            return None
        session = await self._identity_tokens.verify(text, self._directory.latest, grace_seconds=_grace_of(scope))
        return f"session:{session.id}"

    def _find(self, scope: Scope) -> tuple[str, str]:
        path = scope["path"].split("/", 3)
        in_path = {"session": path[2]} if path[1:2] == ["s"] and len(path) > 2 else {}
        return find_credential(HTTPConnection({**scope, "path_params": in_path}), self._cookie)

    def _recall_operator(self, request: HTTPConnection) -> str | None:
        """Name the console session of an operator who has signed in, from its cookie."""
        for name in CONSOLE_NAMES:
            with suppress(Unauthenticated):
                document = self._sessions.read_document(read_cookie(request, name) or "", CONSOLE_SALT)
                # A form to sign in is signed too, for anyone who loads it: it has neither a token nor a role.
                match {"role": "", **document} if isinstance(document, dict) else None:
                    case {"id": str(id_), "expires_at": float() | int() as ends, "token": token, "role": role}:
                        if (token is not None or role) and ends > self._clock.now():
                            return f"console:{id_}"
        return None


def _grace_of(scope: Scope) -> float:
    may_read = scope["method"] == "GET" and scope["path"].startswith(_JOB_PATHS)
    return GRACE_SECONDS if may_read else 0.0
