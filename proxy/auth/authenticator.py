"""Who is asking: from the credential of a request to a `Caller`.

Where a credential can be, first match wins: `Authorization: Bearer|Key`, `x-fal-proxy-session`, the `/s/{session}/`
path, the cookie. One that is there and wrong is an error, never "anonymous". Browsers send a cookie on behalf of any
page, so it counts only where nothing says that a foreign page asks. An identity token counts wherever a session does.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

from cachetools import LRUCache
from starlette.requests import HTTPConnection

from proxy.auth.cookies import SessionCookie
from proxy.auth.credentials import HEADER, find_credential, read_bearer
from proxy.auth.identity import IdentityTokens, is_identity_token
from proxy.auth.sessions import KEPT, UPLOAD_SALT, Sessions
from proxy.clock import Clock
from proxy.errors import OriginNotAllowed, ProxyError, Unauthenticated
from proxy.limits.session_quotas import SESSION_QUOTAS, SessionQuotas
from proxy.origins import OriginRefusal
from proxy.settings import Settings
from proxy.stores.directory import TenantKey
from proxy.stores.ledger import Ledger
from proxy.stores.uploads import Upload
from proxy.telemetry.log_limit import LogLimit
from proxy.tenants import keys
from proxy.tenants.caller import (
    GRACE_SECONDS,
    Caller,
    Session,
    check_not_revoked,
    find_key,
    find_tenant,
    is_guest_name,
)
from proxy.tenants.directory import Directory, Snapshot
from proxy.tenants.plans import Tenant
from proxy.tenants.terms import add_session_limits, narrow_terms

#: A key's last use is kept to this accuracy, so that a busy key does not cost a write a call.
TOUCH_SECONDS = 60.0
UPLOAD_TOKEN_SECONDS = 900.0
_log = logging.getLogger(__name__)


class Authenticator:
    """Turns the credential of a request into its caller."""

    def __init__(
        self,
        sessions: Sessions,
        identity_tokens: IdentityTokens,
        directory: Directory,
        ledger: Ledger,
        settings: Settings,
        clock: Clock,
    ) -> None:
        self._sessions = sessions
        self._identity_tokens = identity_tokens
        self._directory = directory
        self._ledger = ledger
        self._clock = clock
        self.cookie = SessionCookie(is_secure=not settings.dev)
        self._origins = settings.server.allowed_origins | {settings.server.own_origin}
        #: By token, the callers of one reading of the directory: what it says of a session holds until the next one.
        self._cached: LRUCache[str, Caller] = LRUCache(KEPT)
        self._cached_for: Snapshot | None = None
        self._touched: LRUCache[str, float] = LRUCache(KEPT)
        self._touching: set[asyncio.Task[None]] = set()
        self._unread_quotas = LogLimit()

    async def authenticate(self, request: HTTPConnection) -> Caller:
        """Authenticate the caller of a request.

        Raises:
            Unauthenticated: no credential, or one that does not count (also SessionExpired, SessionRevoked).
            TenantSuspended: the credential counts, but its tenant is suspended.
            OriginNotAllowed: a cookie from a page that may not use it.
            StoreUnavailable: revocations cannot be checked.
            IdentityUnavailable: an identity token cannot be checked.
        """
        place, text = find_credential(request, self.cookie)
        snapshot = await self._directory.snapshot()
        # Nowhere else: a path is written down in many places, and a cookie is sent by any page.
        if place == "authorization" and text.startswith(keys.PREFIX):
            return self._tenant_caller(text, snapshot)
        if is_identity_token(text):
            session = await self._identity_tokens.verify(text, snapshot)
            # Shorter than the token, and as good: it was verified.
            text = session.id
        else:
            session = self._sessions.verify(text)
        if snapshot is not self._cached_for:
            self._cached_for = snapshot
            self._cached.clear()
        caller = self._cached.get(text)
        if caller is None:
            caller = self._cached[text] = _session_caller(session, snapshot)
        if session.quotas:
            self._show_quotas(request, session)
        if place == "cookie":
            self._check_origin(request, caller.tenant)
        return caller

    async def authenticate_token(self, token: str) -> Caller:
        """Authenticate the caller that an identity token names, wherever in the request it came.

        Raises:
            Unauthenticated, TenantSuspended, StoreUnavailable, IdentityUnavailable: as `authenticate`.
        """
        snapshot = await self._directory.snapshot()
        return _session_caller(await self._identity_tokens.verify(token, snapshot), snapshot)

    async def authenticate_expired(self, request: HTTPConnection) -> Caller:
        """Authenticate a caller whose session expired within the grace period, for reading its jobs and nothing else.

        Raises:
            Unauthenticated, TenantSuspended, OriginNotAllowed, StoreUnavailable, IdentityUnavailable: as
                `authenticate`.
        """
        place, text = find_credential(request, self.cookie)
        snapshot = await self._directory.snapshot()
        if is_identity_token(text):
            session = await self._identity_tokens.verify(text, snapshot, grace_seconds=GRACE_SECONDS)
        else:
            session = self._sessions.verify(text, grace_seconds=GRACE_SECONDS)
        caller = _session_caller(session, snapshot)
        if session.quotas:
            self._show_quotas(request, session)
        if place == "cookie":
            self._check_origin(request, caller.tenant)
        return caller

    def _show_quotas(self, request: HTTPConnection, session: Session) -> None:
        """Let the answer to a request say what is left of the session's quotas."""
        request.scope["state"][SESSION_QUOTAS] = SessionQuotas(self._ledger, session, self._unread_quotas)

    def comes_in_cookie(self, request: HTTPConnection) -> bool:
        """Return whether the credential of a request is its cookie.

        Raises:
            Unauthenticated: as `authenticate`.
        """
        return find_credential(request, self.cookie)[0] == "cookie"

    def upload_token(self, caller: Caller) -> tuple[str, float]:
        """Mint a token for uploads only, and say when it ends: soon, and with the credential it stands for."""
        now = self._clock.now()
        ends = now + UPLOAD_TOKEN_SECONDS
        # A tenant key has no session: the token names the key, and no subject.
        session = caller.session or Session(caller.key_id or "", caller.tenant.id, "", now, ends)
        owner_expires_at = caller.session.expires_at if caller.session else None
        session = replace(
            session, expires_at=min(session.expires_at, ends), endpoints=(), owner_expires_at=owner_expires_at
        )
        return self._sessions.sign(session, UPLOAD_SALT), session.expires_at

    async def authenticate_upload(self, request: HTTPConnection) -> Caller:
        """Authenticate the caller behind an upload token, which a session that may call nothing does not get.

        Raises:
            Unauthenticated: no such token, or what it stands for does not count any more.
            TenantSuspended: its tenant is suspended.
            StoreUnavailable: that cannot be checked.
        """
        session = self._sessions.verify(read_bearer(request.headers.getlist("authorization")), UPLOAD_SALT)
        snapshot = await self._directory.snapshot()
        if not session.subject:
            return self._key_caller(find_key(session.id, snapshot), snapshot)
        caller = _session_caller(replace(session, endpoints=None), snapshot)
        if session.quotas:
            self._show_quotas(request, session)
        return caller

    async def may_send(self, request: HTTPConnection, upload: Upload) -> bool:
        """Return whether a request may send an upload's bytes: it shows the owner's credential, or none.

        The upload's id was the proof already. A cookie is not looked at: browsers send it along unasked.

        Raises:
            Unauthenticated: what is presented does not count.
            TenantSuspended: the upload's tenant is suspended.
            StoreUnavailable: it cannot be checked.
        """
        snapshot = await self._directory.snapshot()
        snapshot.check_active(upload.tenant)
        if has_lost_owner(upload, snapshot):
            return False
        if not request.headers.getlist("authorization") and not request.headers.getlist(HEADER):
            return True
        caller = await self.authenticate(request)
        return (caller.tenant.id, caller.subject) == (upload.tenant, upload.subject)

    async def confirm(self, caller: Caller) -> None:
        """Make sure that a caller still counts, before what it was sending takes effect.

        Raises:
            Unauthenticated: what it presented was revoked meanwhile (also SessionRevoked).
            TenantSuspended: its tenant was suspended meanwhile.
            StoreUnavailable: that cannot be checked.
        """
        check_not_revoked(caller, await self._directory.snapshot())

    def origin_allowed(self, origin: str, tenant: Tenant) -> bool:
        return origin.lower() in self._origins or origin.lower() in tenant.allowed_origins

    def _check_origin(self, request: HTTPConnection, tenant: Tenant) -> None:
        origins = request.headers.getlist("origin")
        if origins:
            is_allowed = all(self.origin_allowed(origin, tenant) for origin in origins)
        else:
            # Pages cannot set this header; browsers do, and a GET of the page's own origin carries no Origin. Older
            # Safari sends neither, and nor does a page on plain http: a foreign page could not see what is only read.
            site = request.headers.get("sec-fetch-site")
            is_allowed = site == "same-origin" or (site is None and request.scope["method"] in ("GET", "HEAD"))
        if not is_allowed:
            raise OriginNotAllowed(
                "This page's origin may not use the session cookie; add it to allowed_origins.",
                OriginRefusal(
                    "cookie",
                    ", ".join(origins) or f"none (sec-fetch-site: {request.headers.get('sec-fetch-site', 'none')})",
                    lambda: self._origins | tenant.allowed_origins,
                    f"allowed_origins of tenant {tenant.id}, or PROXY_ALLOWED_ORIGINS",
                ),
            )

    def _tenant_caller(self, text: str, snapshot: Snapshot) -> Caller:
        return self._key_caller(keys.verify(text, snapshot.keys), snapshot)

    def _key_caller(self, record: TenantKey, snapshot: Snapshot) -> Caller:
        tenant = snapshot.tenants.get(record.tenant)
        if tenant is None:
            raise Unauthenticated("The tenant key is not valid.")
        snapshot.check_active(tenant.id)
        self._touch(record.id)
        terms = snapshot.terms_of(tenant, tenant.plan, is_guest=False)
        return Caller(tenant, "", tenant.plan, terms, terms.plan.endpoints, key_id=record.id)

    def _touch(self, key_id: str) -> None:
        now = self._clock.now()
        if now - self._touched.get(key_id, float("-inf")) >= TOUCH_SECONDS:
            self._touched[key_id] = now
            task = asyncio.create_task(self._write_touch(key_id, now))
            self._touching.add(task)
            task.add_done_callback(self._touching.discard)

    async def _write_touch(self, key_id: str, now: float) -> None:
        try:
            await self._directory.touch_key(key_id, now)
        except ProxyError:
            _log.warning("last use of a tenant key not recorded")


def has_lost_owner(upload: Upload, snapshot: Snapshot) -> bool:
    """Return whether the session or key that asked for an upload was revoked, or its tenant takes it no longer."""
    tenant = snapshot.tenants.get(upload.tenant)
    if tenant is None or (is_guest_name(upload.subject) and not tenant.guests.enabled):
        return True
    if upload.session_id is None:
        return False
    if not upload.subject:
        return upload.session_id not in snapshot.keys
    minted = (upload.issued_at or 0.0, upload.newest_revocation)
    return snapshot.is_revoked(upload.tenant, upload.subject, upload.session_id, *minted)


def _session_caller(session: Session, snapshot: Snapshot) -> Caller:
    tenant = find_tenant(session, snapshot)
    plan_name = snapshot.plan_of(tenant, session.subject, session.plan, is_guest=session.guest)
    if plan_name not in snapshot.plans:
        raise Unauthenticated("The session's plan no longer exists; get a new one.")
    terms = snapshot.subject_terms(tenant, session.subject, plan_name, is_guest=session.guest)
    if any(session.ceilings):
        terms = narrow_terms(terms, **session.ceilings._asdict())
    if session.quotas:
        terms = add_session_limits(terms, session.quotas)
    allowed = terms.plan.endpoints
    wanted = allowed if session.endpoints is None else allowed.intersection(session.endpoints)
    return Caller(tenant, session.subject, plan_name, terms, wanted, session=session)
