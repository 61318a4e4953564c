"""Challenges that cost a browser some seconds of work. The only user of altcha.

They are those of ALTCHA's second protocol, which its widget solves from version 3 on: find the counter whose key, by
PBKDF2, begins with a prefix. Nothing is stored of a challenge: it carries the tenant and the page that it is for, and
the signature that only this proxy can make.
"""

from __future__ import annotations

import secrets
from base64 import b64decode
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from proxy.auth.sessions import CHALLENGE_SALT, Sessions
from proxy.clock import Clock
from proxy.errors import ProofInvalid

EXPIRY_SECONDS = 300
ALGORITHM = "PBKDF2/SHA-256"
#: Rounds of a key, which takes 0.3 ms in Node.js on a slow core.
ROUNDS = 100
KEY_BYTES, PREFIX_BYTES = 32, 16

#: So many bytes in hexadecimal digits.
Hex16 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Hex32 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Form(BaseModel):
    model_config = ConfigDict(strict=True)


class _Parameters(_Form):
    """What differs from one challenge to the next; the rest, whatever it says, counts as this program wrote it."""

    nonce: Hex16
    salt: Hex16
    key_prefix: Hex16 = Field(alias="keyPrefix")
    expires_at: int = Field(alias="expiresAt")
    data: dict[str, str]


class _Challenge(_Form):
    parameters: _Parameters
    signature: Hex32


class _Solution(_Form):
    counter: int = Field(ge=0, lt=2**32)
    derived_key: Hex32 = Field(alias="derivedKey")


class _Payload(_Form):
    """What the widget sends, in base64."""

    challenge: _Challenge
    solution: _Solution


class ProofOfWork:
    """Makes challenges and verifies their solutions."""

    def __init__(self, sessions: Sessions, clock: Clock) -> None:
        self._sessions = sessions
        self._clock = clock

    def make_challenge(self, tenant: str, origin: str, difficulty: int) -> dict[str, Any]:
        """Make a challenge for a page of a tenant, in the widget's form."""
        # Imported here: it brings an HTTP client of its own, and most proxies make no challenge.
        import altcha

        return altcha.create_challenge(
            ALGORITHM,
            ROUNDS,
            counter=secrets.randbelow(difficulty),
            key_length=KEY_BYTES,
            key_prefix_length=PREFIX_BYTES,
            expires_at=int(self._clock.now()) + EXPIRY_SECONDS,
            data=_bind_to(tenant, origin),
            hmac_secret=self._sessions.derive_keys(CHALLENGE_SALT)[0],
        ).to_dict()

    def verify(self, tenant: str, origin: str, value: str) -> str:
        """Verify a solution for a page of a tenant; the name of its challenge, which no other has.

        Raises:
            ProofInvalid: it does not hold.
        """
        import altcha

        payload = _parse(value)
        signed = payload.challenge.parameters
        if signed.data != _bind_to(tenant, origin):
            raise ProofInvalid("The challenge is for another tenant or page; get a new one.")
        parameters = altcha.ChallengeParameters(
            ALGORITHM,
            signed.nonce,
            signed.salt,
            ROUNDS,
            key_length=KEY_BYTES,
            key_prefix=signed.key_prefix,
            expires_at=signed.expires_at,
            data=signed.data,
        )
        solved = altcha.Payload(
            altcha.Challenge(parameters, payload.challenge.signature),
            altcha.Solution(payload.solution.counter, payload.solution.derived_key),
        )
        results = (altcha.verify_solution(solved, key) for key in self._sessions.derive_keys(CHALLENGE_SALT))
        result = next((result for result in results if not result.invalid_signature), None)
        if result is None:
            raise ProofInvalid("The challenge is not one of this proxy's, or was changed; get a new one.")
        if result.expired or signed.expires_at <= self._clock.now():
            raise ProofInvalid("The challenge has expired; get a new one.")
        if not result.verified:
            raise ProofInvalid("The solution is wrong; solve the challenge again.")
        return signed.nonce


def _bind_to(tenant: str, origin: str) -> dict[str, str]:
    return {"tenant": tenant, "origin": origin}


def _parse(value: str) -> _Payload:
    try:
        return _Payload.model_validate_json(b64decode(value))
    except (ValidationError, ValueError):
        # `from None`: the cause quotes the proof.
        raise ProofInvalid("The proof is not what an ALTCHA widget of version 3 or later gives.") from None
