"""Verification of identity tokens. The only user of joserfc beside the key sets.

Cheap checks come first: the issuer and the audience that a token claims, looked up in what tenants accept, then its
algorithm. Only then is its key looked for and its signature verified. What it says beyond that is read last.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, get_args

import orjson
from joserfc.errors import JoseError, UnsupportedAlgorithmError
from joserfc.jwk import Key
from joserfc.jws import CompactSignature, JWSRegistry, extract_compact, validate_compact

from proxy.auth.claims import read_session
from proxy.auth.issuer_keys import KeySource, KeySources
from proxy.auth.verified import Verified
from proxy.clock import Clock
from proxy.errors import InvalidToken
from proxy.tenants.directory import Issuers
from proxy.tenants.identity import Algorithm, Identity
from proxy.tenants.key_set import MOST_TRIED, KeySet

MAX_KID_LENGTH = 200
#: What a token may say it is (RFC 8725, section 3.11; RFC 9068): others are not for calling.
_TYPES = frozenset(("jwt", "application/jwt", "at+jwt", "application/at+jwt"))


class _Accepted(NamedTuple):
    """The tenant that accepts a token, and how."""

    tenant: str
    identity: Identity


class Signed(NamedTuple):
    """A token that its issuer has signed.

    Attributes:
        payload: its claims as they were signed.
        keys: where the key was found.
    """

    claims: dict[str, Any]
    payload: bytes
    tenant: str
    identity: Identity
    source: KeySource
    keys: KeySet


class _Registry(JWSRegistry):
    """The algorithms that a plan file can name. joserfc's own list warns of one that providers use, EdDSA."""

    # Some providers put a certificate there.
    max_header_length = 4096

    def get_alg(self, name: str) -> Any:
        if name not in (self.allowed or ()):
            raise UnsupportedAlgorithmError(f"Algorithm of '{name}' is not allowed")
        return self.algorithms[name]


#: Header fields that it does not know are left aside (RFC 7515, section 4).
_REGISTRY = _Registry(algorithms=get_args(Algorithm), strict_check_header=False)


async def verify(token: str, issuers: Issuers, sources: KeySources, clock: Clock) -> Verified:
    """Verify a token, but for its expiry.

    Raises:
        InvalidToken: no tenant accepts it.
        IdentityUnavailable: the keys of its issuer cannot be had.
    """
    signed = await verify_signature(token, issuers, sources)
    session = read_session(signed.claims, signed.tenant, signed.identity, signed.payload, clock.now())
    return Verified(session, signed.source, signed.keys)


async def verify_signature(token: str, issuers: Issuers, sources: KeySources) -> Signed:
    """Verify who has signed a token, and for whom; its other claims are the caller's to check.

    Raises:
        InvalidToken: no tenant accepts it.
        IdentityUnavailable: the keys of its issuer cannot be had.
    """
    parsed = parse(token)
    claims = read_claims(parsed)
    tenant, identity = _find_accepted(issuers, claims)
    _check_header(parsed.protected, identity)
    source = sources.find(identity)
    keys = await _check_signature(parsed, source)
    return Signed(claims, parsed.segments["payload"], tenant, identity, source, keys)


def parse(token: str) -> CompactSignature:
    """Take a token apart; nothing of it is verified.

    Raises:
        InvalidToken: it is none.
    """
    try:
        return extract_compact(token.encode("ascii"), registry=_REGISTRY)
    except (JoseError, ValueError, RecursionError):
        # `from None`: the cause may quote the token.
        raise InvalidToken("The token is not a signed JWT.") from None


def read_claims(signed: CompactSignature) -> dict[str, Any]:
    """Read the claims of a token.

    Raises:
        InvalidToken: they are no JSON object.
    """
    try:
        claims = orjson.loads(signed.payload)
    except ValueError:
        claims = None
    if not isinstance(claims, dict):
        raise InvalidToken("The token's claims are not a JSON object.")
    return claims


def _find_accepted(issuers: Issuers, claims: Mapping[str, Any]) -> _Accepted:
    """Find the one tenant that accepts tokens of this issuer for this audience."""
    issuer = claims.get("iss")
    known = issuers.get(issuer) if isinstance(issuer, str) else None
    if known is None:
        raise InvalidToken("No tenant accepts tokens of this issuer (iss).")
    found = [_Accepted(*one) for one in known if _is_audience(one[1], claims)]
    if not found:
        names = " or ".join(sorted({identity.audience_claim for _, identity in known}))
        raise InvalidToken(f"No tenant accepts tokens of this issuer for this audience ({names}).")
    if len(found) > 1:
        raise InvalidToken("The token's audiences lead to more than one tenant; get a token with one of them.")
    return found[0]


def _is_audience(identity: Identity, claims: Mapping[str, Any]) -> bool:
    given = claims.get(identity.audience_claim)
    listed = given if isinstance(given, list) else [given]
    return any(isinstance(one, str) and one in identity.audience for one in listed)


def _check_header(header: Mapping[str, Any], identity: Identity) -> None:
    algorithm, kid, kind = header.get("alg"), header.get("kid"), header.get("typ", "JWT")
    if not isinstance(algorithm, str) or algorithm not in identity.algorithms:
        raise InvalidToken(f"The token's algorithm (alg) must be {' or '.join(sorted(identity.algorithms))}.")
    if "crit" in header or "b64" in header:
        raise InvalidToken("The token needs an extension (crit, b64) that is not known here.")
    if not isinstance(kind, str) or kind.lower() not in _TYPES:
        raise InvalidToken("The token's type (typ) must be JWT or at+jwt.")
    if kid is not None and (not isinstance(kid, str) or not 0 < len(kid) <= MAX_KID_LENGTH):
        raise InvalidToken(f"The token's key (kid) must be a text of 1 to {MAX_KID_LENGTH} characters.")


async def _check_signature(signed: CompactSignature, source: KeySource) -> KeySet:
    """Make sure that the issuer has signed; give its keys."""
    kid, algorithm = signed.protected.get("kid"), signed.protected["alg"]
    keys = await source.get()
    candidates = keys.find(kid, algorithm)
    if not candidates:
        keys = await source.get_newer()
        candidates = keys.find(kid, algorithm)
    if not candidates:
        raise InvalidToken("The token's issuer has no such key (kid) for this algorithm.")
    if len(candidates) > MOST_TRIED:
        raise InvalidToken(f"More than {MOST_TRIED} keys may have signed the token; it must name one (kid).")
    if not any(is_signed_by(key, signed) for key in candidates):
        raise InvalidToken("The token's signature is wrong.")
    return keys


def is_signed_by(key: Key, signed: CompactSignature) -> bool:
    """Return whether a key made a token's signature."""
    try:
        return validate_compact(signed, key, registry=_REGISTRY)
    except (JoseError, ValueError):
        return False
