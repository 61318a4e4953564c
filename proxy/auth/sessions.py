"""Session tokens: short-lived, signed, for one end user of one tenant. The only user of itsdangerous.

A token carries its fields and a signature (HMAC with SHA-256); nothing is stored until one is revoked. The key ring is
newest first: the first secret signs, all of them verify, so that secrets can be rotated without logging anyone out.
"""

from __future__ import annotations

import hashlib
import math
import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from typing import Any

from itsdangerous import BadData, BadSignature, URLSafeSerializer
from itsdangerous.encoding import base64_decode, base64_encode

from proxy.clock import Clock, to_iso
from proxy.errors import BadRequest, NotAllowed, SessionExpired, Unauthenticated
from proxy.settings import Secret
from proxy.stores.audit import Change
from proxy.tenants.caller import GUEST_PREFIX, PLAN_CEILINGS, InputCeilings, Session, SessionQuota, is_guest_name

#: One salt for each purpose: a signature made for one never verifies for another.
SESSION_SALT = "fal-proxy.session.v1"
UPLOAD_SALT = "fal-proxy.upload.v1"
CHALLENGE_SALT = "fal-proxy.challenge.v1"
CONSOLE_SALT = "fal-proxy.console.v1"
OIDC_SALT = "fal-proxy.oidc.v1"
MAX_TOKEN_LENGTH = 4096
#: Room for what a renewal adds, and for the cookie's name: browsers drop a cookie of more than 4,096 bytes in silence.
MAX_MINTED_LENGTH = MAX_TOKEN_LENGTH - 96
#: Tokens whose signature is not checked again. Their expiry is, and the authenticator checks for revocation.
KEPT = 4096
#: Printable, without spaces at the ends; never empty, as the empty subject is the tenant itself. Half a surrogate pair,
#: which a shell can pass, has no UTF-8.
_SUBJECT = re.compile(
    r"[^\s\x00-\x1f\x7f\ud800-\udfff](?:[^\x00-\x1f\x7f\ud800-\udfff]{0,198}[^\s\x00-\x1f\x7f\ud800-\udfff])?"
)
#: Parts of a path that clients resolve before they send it (RFC 3986, section 5.2.4), also if they are encoded.
_DOTS = frozenset((".", ".."))
SUBJECT_RULE = "must be 1 to 200 printable characters, without spaces at the ends"
_SESSION_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def is_subject(text: object) -> bool:
    """Return whether a text can name an end user: 1 to 200 printable characters."""
    return isinstance(text, str) and _SUBJECT.fullmatch(text) is not None


def check_subject(text: str) -> str:
    """Return the name of an end user, if a tenant may use it.

    Raises:
        ValueError: it is not printable, too long, a way to another URL, or of the form that guests' names have.
    """
    if not is_subject(text):
        raise ValueError(SUBJECT_RULE)
    if not _DOTS.isdisjoint(text.split("/")):
        # The admin API has it in its paths: of `DELETE …/tenants/acme/subjects/..` a client makes `…/tenants/acme`.
        raise ValueError("must not be '.' or '..', also between slashes: clients resolve that in a URL")
    if is_guest_name(text):
        # Jobs and files know their owner by its name alone, and what is a guest's counts as such.
        raise ValueError("'guest-' and 16 hexadecimal digits name a guest; choose another name for this user")
    return text


def new_guest_name() -> str:
    """Make a name for a caller that has none. No tenant can mint a session for it."""
    return GUEST_PREFIX + secrets.token_hex(8)


def is_session_id(text: object) -> bool:
    """Return whether a text can be the id of a session."""
    return isinstance(text, str) and _SESSION_ID.fullmatch(text) is not None


class Sessions:
    """Mints, renews and verifies tokens."""

    def __init__(self, key_ring: Sequence[Secret], clock: Clock) -> None:
        self._clock = clock
        # A token's content and signer never change, so each is verified once; tokens that raise are not cached.
        self._read = lru_cache(maxsize=KEPT)(self._read_uncached)
        self.replace_secrets(key_ring)

    def replace_secrets(self, key_ring: Sequence[Secret]) -> None:
        """Sign with the first of these from now on; tokens that only others have signed do not count any more."""
        # One serializer a secret, and not a ring of itsdangerous: that does not tell which of them has signed.
        self._serializers = {
            salt: {_digest(secret): _serializer(secret, salt) for secret in key_ring}
            for salt in (SESSION_SALT, UPLOAD_SALT, CHALLENGE_SALT, CONSOLE_SALT, OIDC_SALT)
        }
        self._read.cache_clear()

    def derive_keys(self, salt: str) -> list[bytes]:
        """Derive the keys that sign for one purpose, one for each secret, newest first."""
        return [serializer.make_signer().derive_key() for serializer in self._serializers[salt].values()]

    def sign_document(self, document: Mapping[str, Any], salt: str) -> str:
        """Sign a document that is not a tenant's session, for one purpose, with the newest secret."""
        text = next(iter(self._serializers[salt].values())).dumps(document)
        return text if isinstance(text, str) else text.decode()

    def read_document(self, text: str, salt: str) -> Any:
        """Read what a text for this purpose says.

        Raises:
            Unauthenticated: none of our secrets has signed it.
        """
        if len(text) <= MAX_TOKEN_LENGTH and text.isascii():
            for serializer in self._serializers[salt].values():
                with suppress(BadData):
                    return serializer.loads(text)
        raise Unauthenticated("The session is not valid; sign in again.")

    def is_signed(self, session: Session) -> bool:
        """Return whether the secret that a session's token was signed with is still one of ours, or it needs none."""
        return session.identity is not None or session.signed_with in self._serializers[SESSION_SALT]

    def mint(
        self,
        tenant: str,
        subject: str,
        ttl_seconds: float,
        *,
        endpoints: Sequence[str] | None = None,
        guest: bool = False,
        ceilings: InputCeilings = PLAN_CEILINGS,
        quotas: tuple[SessionQuota, ...] = (),
        tags: tuple[str, ...] = (),
        plan: str | None = None,
        newest_revocation: int | None = None,
    ) -> tuple[str, Session]:
        """Mint a token, and return it with what it says; `newest_revocation` is as a reading of now has it.

        Raises:
            BadRequest: it says more than a token holds.
        """
        now = self._clock.now()
        session = Session(
            id=secrets.token_urlsafe(12),
            tenant=tenant,
            subject=subject,
            # Rounded down: a session is never younger than a revocation that follows it.
            issued_at=math.floor(now * 1000) / 1000,
            expires_at=round(now + ttl_seconds, 3),
            endpoints=None if endpoints is None else tuple(endpoints),
            guest=guest,
            ceilings=ceilings,
            quotas=quotas,
            tags=tags,
            plan=plan,
            newest_revocation=newest_revocation,
        )
        token = self.sign(session)
        if len(token) > MAX_MINTED_LENGTH:
            raise BadRequest(
                f"The session's token would be longer than {MAX_MINTED_LENGTH} characters. Use a shorter subject, "
                "fewer endpoints or fewer tags."
            )
        return token, session

    def renew(self, session: Session, plan_seconds: float, max_age_seconds: float) -> tuple[str, Session]:
        """Renew a session for as long as it was minted for, and no longer than its plan lets one last.

        Raises:
            NotAllowed: it may not become older than it is already.
        """
        ends = round(session.issued_at + max_age_seconds, 3)
        if session.expires_at >= ends:
            raise NotAllowed(
                f"The session cannot be renewed: its plan lets one last {max_age_seconds:g} seconds from the start, "
                "renewals included. Get a new one from your backend."
            )
        until = min(self._clock.now() + min(session.ttl_seconds, plan_seconds), ends)
        expires_at = max(session.expires_at, round(until, 3))
        renewed = replace(session, expires_at=expires_at, minted_for=session.ttl_seconds)
        return self.sign(renewed), renewed

    def sign(self, session: Session, salt: str = SESSION_SALT) -> str:
        """Sign a session for one purpose, with the newest secret."""
        token = next(iter(self._serializers[salt].values())).dumps(_pack(session))
        return token if isinstance(token, str) else token.decode()

    def verify(self, token: str, salt: str = SESSION_SALT, *, grace_seconds: float = 0.0) -> Session:
        """Return what a token for this purpose says, if it is ours and expired no longer ago than `grace_seconds`.

        Raises:
            Unauthenticated: it is not a token of ours.
            SessionExpired: its time is over.
        """
        if len(token) > MAX_TOKEN_LENGTH or not token.isascii():
            raise Unauthenticated("The session token is not valid.")
        try:
            session = self._read(token, salt)
        except (BadData, AttributeError, KeyError, OverflowError, TypeError, ValueError):
            # `from None`: the cause may quote the token.
            raise Unauthenticated("The session token is not valid.") from None
        if session.expires_at + grace_seconds <= self._clock.now():
            raise SessionExpired("The session has expired; get a new one.")
        return session

    def _read_uncached(self, token: str, salt: str) -> Session:
        signature = token.rpartition(".")[2]
        # What is signed is text, which has one spelling; of its signature, base64 reads more than one.
        if base64_encode(base64_decode(signature)) != signature.encode():
            raise ValueError("the signature is not in its one spelling")
        for digest, serializer in self._serializers[salt].items():
            try:
                packed = serializer.loads(token)
            except BadSignature:
                continue
            return replace(_unpack(packed), signed_with=digest)
        raise ValueError("no secret of ours has signed it")


def describe_mint(session: Session) -> Change:
    """Describe for the audit log that an operator minted a session. Its tags may name the user, and are left out."""
    after = {"expires_at": to_iso(session.expires_at), "endpoints": session.endpoints}
    return Change("session.mint", session.tenant, session.id, session.subject, after=after)


def _serializer(secret: Secret, salt: str) -> URLSafeSerializer:
    how = {"key_derivation": "hmac", "digest_method": hashlib.sha256}
    return URLSafeSerializer(secret.reveal(), salt=salt, signer_kwargs=how)


def _digest(secret: Secret) -> str:
    return hashlib.sha256(secret.reveal().encode()).hexdigest()


def _pack(session: Session) -> dict[str, Any]:
    packed: dict[str, Any] = {
        "i": session.id,
        "t": session.tenant,
        "s": session.subject,
        "a": session.issued_at,
        "x": session.expires_at,
    }
    if session.endpoints is not None:
        packed["e"] = list(session.endpoints)
    if session.guest:
        packed["g"] = True
    if session.owner_expires_at is not None:
        packed["o"] = session.owner_expires_at
    if session.minted_for is not None:
        packed["l"] = session.minted_for
    if any(session.ceilings):
        packed["c"] = list(session.ceilings)
    if session.quotas:
        packed["q"] = [list(quota) for quota in session.quotas]
    if session.tags:
        packed["k"] = list(session.tags)
    if session.plan is not None:
        packed["p"] = session.plan
    if session.newest_revocation is not None:
        packed["r"] = session.newest_revocation
    return packed


def _unpack(packed: Any) -> Session:
    """Read only what `_pack` could have written: a signature says who wrote it, not that this version knows it."""
    endpoints, owner_expires_at, minted_for = packed.get("e"), packed.get("o"), packed.get("l")
    plan, newest, ceilings = packed.get("p"), packed.get("r"), InputCeilings(*packed.get("c", ()))
    quotas, tags = tuple(SessionQuota(*quota) for quota in packed.get("q", ())), tuple(packed.get("k", ()))
    named = [*(endpoints or []), *([] if plan is None else [plan]), *tags, *(quota.unit for quota in quotas)]
    texts = [packed["i"], packed["t"], packed["s"], *named]
    optional = (owner_expires_at, minted_for, newest, *ceilings, *(quota.limit for quota in quotas))
    numbers = [packed["a"], packed["x"], *(number for number in optional if number is not None)]
    if not all(isinstance(text, str) for text in texts) or not all(isinstance(one, (int, float)) for one in numbers):
        raise TypeError("a field has another type")
    return Session(
        id=packed["i"],
        tenant=packed["t"],
        subject=packed["s"],
        issued_at=packed["a"],
        expires_at=packed["x"],
        endpoints=None if endpoints is None else tuple(endpoints),
        guest=packed.get("g") is True,
        owner_expires_at=owner_expires_at,
        minted_for=minted_for,
        ceilings=ceilings,
        quotas=quotas,
        tags=tags,
        plan=plan,
        newest_revocation=newest,
    )
