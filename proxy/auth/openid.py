"""The OpenID Connect provider of operators: the authorization code flow with PKCE, and what its ID token says.

OpenID Connect Core 1.0, section 3.1, and Discovery 1.0; RFC 6749, 7636 and 9207. A token's signature, key and times are
verified as those of tenants' identity tokens are; what only an ID token has is checked here.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import secrets
import ssl
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Mapping
from typing import Any, NamedTuple, get_args
from urllib.parse import quote_plus, urlencode, urlsplit

import orjson
from pydantic import BaseModel

from proxy.auth.claims import read_session
from proxy.auth.issuer_keys import FRESH_SECONDS, RETRY_SECONDS, KeySources
from proxy.auth.key_fetcher import FETCH_SECONDS, KeyFetcher
from proxy.auth.verified import LEEWAY_SECONDS
from proxy.clock import Clock
from proxy.errors import IdentityUnavailable, InvalidToken, NotAllowed
from proxy.outbound import Answer, OutboundClient
from proxy.settings import OidcSettings
from proxy.tenants.identity import Algorithm, Identity
from proxy.tenants.identity import JwksUrl as HttpsUrl

SCOPES = "openid email profile"
CALLBACK = "/console/oidc/callback"
_ANSWER_BYTES = 64 * 1024
#: RFC 6749, section 5.2. Only a plain word is shown or logged.
_ERROR = re.compile(r"[a-z_]{1,40}")
_EMAIL = re.compile(r"[!-?A-~]{1,64}@[!-?A-~]{1,189}")
_log = logging.getLogger(__name__)


class Attempt(NamedTuple):
    """The secrets of one sign-in, which only its browser and this proxy know."""

    state: str
    nonce: str
    verifier: str


class Person(NamedTuple):
    """Who has signed in: by their subject, and by their email if the provider has verified it."""

    subject: str
    email: str | None
    claims: Mapping[str, Any]


class _Metadata(BaseModel):
    """What the provider says of itself, as far as it is used."""

    issuer: str
    authorization_endpoint: HttpsUrl
    token_endpoint: HttpsUrl
    jwks_uri: HttpsUrl
    id_token_signing_alg_values_supported: list[str] = ["RS256"]
    token_endpoint_auth_methods_supported: list[str] = ["client_secret_basic"]
    authorization_response_iss_parameter_supported: bool = False


class OpenIdProvider:
    """Sends operators to a provider, and reads from its ID token who they are.

    Args:
        console_address: where browsers come back to, below it. Never what a request names.
        networks: where the provider may be, beside public addresses.
        ssl_context: what verifies its servers; httpx's by default, as for fal.
        seconds: for each request to it.
    """

    def __init__(
        self,
        settings: OidcSettings,
        console_address: str,
        networks: tuple[str, ...],
        clock: Clock,
        ssl_context: ssl.SSLContext | None = None,
        seconds: float = FETCH_SECONDS,
    ) -> None:
        self.roles, self.host = settings.roles, settings.host
        #: Sessions end when one of these changes.
        self.fingerprint = repr((settings.issuer, settings.client_id, settings.roles))
        self._settings = settings
        self._redirect_uri = f"{console_address}{CALLBACK}"
        self._clock = clock
        self._fetcher = KeyFetcher(networks, ssl_context, seconds)
        self._client = OutboundClient(networks, "PROXY_ISSUER_NETWORKS", ssl_context, seconds)
        self._sources = KeySources(self._fetcher.fetch, clock)
        self._metadata: _Metadata | None = None
        self._read_at = self._failed_at = float("-inf")
        self._discovering = asyncio.Lock()

    async def begin(self) -> tuple[Attempt, str]:
        """Begin a sign-in: return its secrets, and the URL to send the browser to.

        Raises:
            IdentityUnavailable: the provider's metadata cannot be read.
        """
        metadata = await self._discover()
        attempt = Attempt(*(secrets.token_urlsafe(32) for _ in Attempt._fields))
        challenge = urlsafe_b64encode(hashlib.sha256(attempt.verifier.encode()).digest()).rstrip(b"=").decode()
        query = {
            "response_type": "code",
            "client_id": self._settings.client_id,
            "redirect_uri": self._redirect_uri,
            "scope": SCOPES,
            "state": attempt.state,
            "nonce": attempt.nonce,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        joint = "&" if urlsplit(metadata.authorization_endpoint).query else "?"
        return attempt, f"{metadata.authorization_endpoint}{joint}{urlencode(query)}"

    async def complete(self, attempt: Attempt, code: str, issuer: str | None) -> Person:
        """Learn who has signed in, from the code that the browser brought back.

        Args:
            issuer: who the answer says it is from, if it says so (RFC 9207).

        Raises:
            NotAllowed: the code does not count, or is another provider's.
            InvalidToken: the ID token does not.
            IdentityUnavailable: the provider gives none, or cannot be asked.
        """
        metadata = await self._discover()
        is_named = issuer is not None or metadata.authorization_response_iss_parameter_supported
        if is_named and issuer != self._settings.issuer:
            raise NotAllowed("The answer is from another provider (iss); sign in again.")
        token = await self._exchange(metadata, code, attempt.verifier)
        return await self._verify(metadata, token, attempt.nonce)

    async def close(self) -> None:
        await self._sources.close()

    async def _discover(self) -> _Metadata:
        async with self._discovering:
            now = self._clock.now()
            # A clock that was set back keeps neither an old document nor an outage for as long.
            if self._metadata is not None and 0 <= now - self._read_at < FRESH_SECONDS:
                return self._metadata
            if 0 <= now - self._failed_at < RETRY_SECONDS:
                raise _unavailable()
            url = f"{self._settings.issuer.rstrip('/')}/.well-known/openid-configuration"
            try:
                metadata = _Metadata.model_validate(orjson.loads(await self._fetcher.fetch(url)))
                if metadata.issuer != self._settings.issuer:
                    raise ValueError("its issuer is not PROXY_CONSOLE_OIDC_ISSUER")
            except (OSError, ValueError) as problem:
                self._failed_at = now
                self._log_problem("provider not discovered", problem=str(problem) or type(problem).__name__)
                raise _unavailable() from None
            self._metadata, self._read_at = metadata, now
            return metadata

    async def _exchange(self, metadata: _Metadata, code: str, verifier: str) -> str:
        """Get the ID token for a code."""
        fields = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._redirect_uri,
            "code_verifier": verifier,
        }
        headers = {"accept": "application/json", "content-type": "application/x-www-form-urlencoded"}
        id_, secret = self._settings.client_id, self._settings.client_secret.reveal()
        if "client_secret_basic" in metadata.token_endpoint_auth_methods_supported:
            pair = f"{quote_plus(id_)}:{quote_plus(secret)}".encode()
            headers["authorization"] = f"Basic {b64encode(pair).decode()}"
        else:
            fields |= {"client_id": id_, "client_secret": secret}
        body, url = urlencode(fields).encode(), metadata.token_endpoint
        try:
            answer = await self._client.request("POST", url, headers, body, most_bytes=_ANSWER_BYTES)
        except (OSError, ValueError) as problem:
            self._log_problem("provider not asked for a token", problem=str(problem))
            raise _unavailable() from None
        return self._read_token(answer)

    def _read_token(self, answer: Answer) -> str:
        try:
            document = orjson.loads(answer.body)
        except ValueError:
            document = None
        found = document if isinstance(document, dict) else {}
        token, error = found.get("id_token"), read_error(found.get("error"))
        if answer.status == 200 and isinstance(token, str):
            return token
        if answer.status == 400 and error == "invalid_grant":
            raise NotAllowed("The provider does not take this sign-in any more (invalid_grant); sign in again.")
        self._log_problem("provider gave no ID token", status=answer.status, error=error)
        raise IdentityUnavailable(
            f"The identity provider gives no ID token (status {answer.status}, {error}); see the proxy's log.",
            retry_after=RETRY_SECONDS,
        )

    async def _verify(self, metadata: _Metadata, token: str, nonce: str) -> Person:
        # Imported here: what verifies signatures takes memory that a proxy without sign-ins has better uses for.
        from proxy.auth.verification import parse, read_claims, verify_signature

        self._check_party(read_claims(parse(token)), nonce)
        algorithms = frozenset(metadata.id_token_signing_alg_values_supported).intersection(get_args(Algorithm))
        # Not validated again: the metadata and the settings were.
        identity = Identity.model_construct(
            issuer=self._settings.issuer,
            audience=frozenset({self._settings.client_id}),
            jwks_url=metadata.jwks_uri,
            algorithms=algorithms,
        )
        issuers = {identity.issuer: [("", identity)]}
        self._sources.replace(issuers)
        signed = await verify_signature(token, issuers, self._sources)
        now = self._clock.now()
        session = read_session(signed.claims, "", identity, signed.payload, now)
        if session.expires_at + LEEWAY_SECONDS <= now:
            raise InvalidToken("The token has expired (exp).")
        return Person(session.subject, _read_email(signed.claims), signed.claims)

    def _check_party(self, claims: Mapping[str, Any], nonce: str) -> None:
        """Check who a token is from and for, and that it belongs to this sign-in (Core, section 3.1.3.7)."""
        audience, party, given = claims.get("aud"), claims.get("azp"), claims.get("nonce")
        listed = audience if isinstance(audience, list) else [audience]
        if claims.get("iss") != self._settings.issuer:
            raise InvalidToken("The token is from another issuer (iss).")
        if self._settings.client_id not in listed:
            raise InvalidToken("The token is for another client (aud).")
        if (party is not None or len(listed) > 1) and party != self._settings.client_id:
            raise InvalidToken("The token is for another client (azp).")
        if not isinstance(given, str) or not hmac.compare_digest(given.encode(), nonce.encode()):
            raise InvalidToken("The token belongs to another sign-in (nonce).")

    def _log_problem(self, event: str, **fields: object) -> None:
        _log.warning(event, extra={"log_fields": {"host": self.host, **fields}})


def read_error(value: object) -> str:
    """Read the error code of a provider, if it is a plain word."""
    return value if isinstance(value, str) and _ERROR.fullmatch(value) else "no error code"


def _read_email(claims: Mapping[str, Any]) -> str | None:
    """Read the email, if the provider has verified that it is this person's: people can often enter any."""
    email = claims.get("email")
    is_verified = claims.get("email_verified") in (True, "true")
    return email if is_verified and isinstance(email, str) and _EMAIL.fullmatch(email) else None


def _unavailable() -> IdentityUnavailable:
    return IdentityUnavailable(
        "The identity provider cannot be asked now; try again shortly, or sign in with an admin token.",
        retry_after=RETRY_SECONDS,
    )
