"""Proofs of Google Play Integrity, opened with the keys of the app, so that no question to Google is needed.

A token is encrypted (A256KW, A256GCM) and signed (ES256). It says which app asked for it on which device, when, and
with which nonce: the challenge of this proxy.
"""

from __future__ import annotations

from base64 import b64decode
from typing import TYPE_CHECKING, Any

from proxy.auth.app_challenges import AppChallenges
from proxy.auth.proof_of_work import EXPIRY_SECONDS
from proxy.auth.tenant_secrets import TenantSecrets, report_unverified
from proxy.auth.verified import LEEWAY_SECONDS
from proxy.clock import Clock
from proxy.errors import InvalidToken, ProofInvalid
from proxy.tenants.tiers import PlayIntegrityTier

if TYPE_CHECKING:
    from joserfc.jwk import OctKey

KIND = "play_integrity"
KEY_BYTES = 32
#: No compression: little could become much.
ENCRYPTION = ["A256KW", "A256GCM"]


class PlayIntegrity:
    """Verifies tokens."""

    def __init__(self, secrets: TenantSecrets, challenges: AppChallenges, clock: Clock) -> None:
        self._secrets = secrets
        self._challenges = challenges
        self._clock = clock

    def verify(self, tier: PlayIntegrityTier, tenant: str, origin: str, value: str) -> str:
        """Verify a token of a tenant's app; its challenge, which no other has.

        Raises:
            ProofInvalid: it does not hold.
            ProofUnavailable: the app's key is missing.
        """
        try:
            key = read_key(self._secrets.read(tier))
        except (OSError, ValueError) as problem:
            raise report_unverified(KIND, problem, "the proxy lacks the app's key") from None
        said = _open(value, key, tier)
        request = _part(said, "requestDetails")
        nonce = request.get("nonce")
        self._challenges.check(nonce if isinstance(nonce, str) else "", KIND, tenant, origin)
        self._check_time(request.get("timestampMillis"))
        _check_app(tier, request.get("requestPackageName"), _part(said, "appIntegrity"))
        if tier.device_verdict not in _list(_part(said, "deviceIntegrity").get("deviceRecognitionVerdict")):
            raise ProofInvalid(f"The device lacks the verdict {tier.device_verdict} (deviceRecognitionVerdict).")
        return str(nonce)

    def _check_time(self, given: Any) -> None:
        text = str(given)
        if not (text.isascii() and text.isdigit() and len(text) <= 15):
            raise ProofInvalid("The token does not say when it was made (timestampMillis).")
        age = self._clock.now() - int(text) / 1000
        if not -LEEWAY_SECONDS <= age <= EXPIRY_SECONDS:
            raise ProofInvalid("The token was not made just now (timestampMillis); get a new one.")


def read_key(secret: str) -> OctKey:
    """Read the decryption key of an app.

    Raises:
        ValueError: it is none; does not quote it.
    """
    from joserfc.jwk import OctKey

    try:
        key = b64decode(secret, validate=True)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        # Not the decoder's own words: they could quote the key.
        raise ValueError(f"the decryption key is not base64 of {KEY_BYTES} bytes")
    return OctKey.import_key(key)


def _open(value: str, key: OctKey, tier: PlayIntegrityTier) -> dict[str, Any]:
    """Decrypt a token, check Google's signature, and return its claims.

    Raises:
        ProofInvalid: it is no token for this app, or was changed.
    """
    # Imported here: most proxies verify no such proof.
    from joserfc.errors import JoseError
    from joserfc.jwe import JWERegistry, decrypt_compact

    from proxy.auth.verification import is_signed_by, parse, read_claims

    try:
        signed = decrypt_compact(value, key, registry=JWERegistry(algorithms=ENCRYPTION)).plaintext
    except (JoseError, ValueError):
        # `from None`: the cause may quote the proof.
        raise ProofInvalid("The proof is no token of Play Integrity for this app.") from None
    try:
        parsed = parse((signed or b"").decode(errors="replace"))
        if parsed.protected.get("alg") != "ES256" or not is_signed_by(tier.key, parsed):
            raise ProofInvalid("The token's signature is wrong.")
        return read_claims(parsed)
    except InvalidToken as error:
        raise ProofInvalid(f"The proof contains no token of Play Integrity. {error.message}") from None


def _check_app(tier: PlayIntegrityTier, asked_by: Any, app: dict[str, Any]) -> None:
    if asked_by != tier.package or app.get("packageName", tier.package) != tier.package:
        raise ProofInvalid("The token is for another app (packageName).")
    if str(app.get("appRecognitionVerdict")) not in tier.app_verdicts:
        raise ProofInvalid("Google Play does not recognize the app (appRecognitionVerdict).")


def _part(said: dict[str, Any], name: str) -> dict[str, Any]:
    found = said.get(name)
    return found if isinstance(found, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
