"""The tiers of a tenant's guests, in the form of the plan file: which proof gives which plan."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from proxy.tenants.key_set import read_curve_key
from proxy.tenants.secret_source import SecretSource
from proxy.tenants.strict import Name, Several, Strict

if TYPE_CHECKING:
    from joserfc.jwk import Key

#: At 0.3 ms a key, a browser with four workers tries all of them in 75 seconds. The widget gives up after 90.
MOST_DIFFICULTY = 1_000_000
MOST_APPS = 100
AppVerdict = Literal["PLAY_RECOGNIZED", "UNRECOGNIZED_VERSION"]
DeviceVerdict = Literal[
    "MEETS_BASIC_INTEGRITY", "MEETS_DEVICE_INTEGRITY", "MEETS_STRONG_INTEGRITY", "MEETS_VIRTUAL_INTEGRITY"
]
AppId = Annotated[str, Field(min_length=1, max_length=200)]


class OpenTier(Strict):
    """A plan for guests without a proof."""

    proof: Literal["none"]
    plan: Name


class PowTier(Strict):
    """A plan for guests whose browser has solved an ALTCHA challenge.

    `difficulty` is the most keys that the browser derives for it; half of them on average.
    """

    proof: Literal["pow"]
    plan: Name
    difficulty: int = Field(default=50_000, ge=1, le=MOST_DIFFICULTY)


class VerifiedTier(SecretSource):
    """A plan for guests whose token a service verifies.

    `secret_env` names the variable, `secret_file` the file with the tenant's secret at the service. `action` is that
    of the widget (Turnstile, reCAPTCHA), and `min_score` the least score (reCAPTCHA v3).
    """

    proof: Literal["turnstile", "hcaptcha", "recaptcha"]
    plan: Name
    action: str | None = Field(default=None, min_length=1, max_length=100)
    min_score: float | None = Field(default=None, ge=0, le=1)


class AppCheckTier(Strict):
    """A plan for guests whose app has a token of Firebase App Check.

    `project` is the number of the Firebase project. `apps` are the ids of its apps that count; without it, all count.
    """

    proof: Literal["app_check"]
    plan: Name
    project: str = Field(pattern=r"^[0-9]{1,20}$")
    apps: Annotated[Several[AppId], Field(min_length=1, max_length=MOST_APPS)] | None = None


class PlayIntegrityTier(SecretSource):
    """A plan for guests of an Android app, with a token of Google Play Integrity.

    `secret_env` names the variable, `secret_file` the file with the decryption key of the app's responses.
    `verification_key` is the public key that Google shows beside it. `app_verdicts` are the verdicts about the app
    that count, and `device_verdict` is one that the device must have.
    """

    proof: Literal["play_integrity"]
    plan: Name
    package: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*(\.[A-Za-z][A-Za-z0-9_]*)+$", max_length=255)
    verification_key: str = Field(max_length=500)
    app_verdicts: Annotated[Several[AppVerdict], Field(min_length=1)] = frozenset[AppVerdict]({"PLAY_RECOGNIZED"})
    device_verdict: DeviceVerdict = "MEETS_DEVICE_INTEGRITY"

    @model_validator(mode="after")
    def _check_key(self) -> Self:
        _ = self.key
        return self

    @cached_property
    def key(self) -> Key:
        """What verifies Google's signature.

        Raises:
            ValueError: `verification_key` is no such key.
        """
        return read_curve_key(self.verification_key)


class AppAttestTier(Strict):
    """A plan for guests of an app for iOS, with an attestation of Apple's App Attest.

    `app` is the team's id, a dot and the bundle's id. `root_file` is a certificate in place of that of Apple's root.
    """

    proof: Literal["app_attest"]
    plan: Name
    app: str = Field(pattern=r"^[A-Z0-9]{10}\.[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)
    environment: Literal["production", "development"] = "production"
    root_file: str | None = Field(default=None, pattern=r"^/", max_length=500)


#: The tiers whose proof contains a challenge of this proxy.
ChallengeTier = PlayIntegrityTier | AppAttestTier
#: The tiers whose proof names the app that a guest uses.
AppTier = AppCheckTier | ChallengeTier
Tier = OpenTier | PowTier | VerifiedTier | AppTier


def _check_order(tiers: tuple[Tier, ...]) -> tuple[Tier, ...]:
    kinds = [tier.proof for tier in tiers]
    if twice := sorted({kind for kind in kinds if kinds.count(kind) > 1}):
        raise ValueError(f"two tiers have the proof {twice[0]}; keep one of them")
    if "none" in kinds[:-1]:
        raise ValueError("the tier with the proof none must be the last: no guest would get the plan of one after it")
    return tiers


#: The services that verify their own tokens.
CAPTCHAS: tuple[str, ...] = get_args(VerifiedTier.model_fields["proof"].annotation)
_KINDS = ("none", "pow", *CAPTCHAS, "app_check", "play_integrity", "app_attest")


def _read_proof(tier: Any) -> Any:
    proof = tier.get("proof") if isinstance(tier, dict) else getattr(tier, "proof", None)
    return "verified" if proof in CAPTCHAS else proof


#: A function, as Pydantic does not look at a field by its name if a validator, here that of `Strict`, comes before it.
_ByProof = Discriminator(
    _read_proof, custom_error_type="unknown_proof", custom_error_message=f"the proof must be one of {', '.join(_KINDS)}"
)
_AnyTier = Annotated[
    Annotated[OpenTier, Tag("none")]
    | Annotated[PowTier, Tag("pow")]
    | Annotated[VerifiedTier, Tag("verified")]
    | Annotated[AppCheckTier, Tag("app_check")]
    | Annotated[PlayIntegrityTier, Tag("play_integrity")]
    | Annotated[AppAttestTier, Tag("app_attest")],
    _ByProof,
]
Tiers = Annotated[tuple[_AnyTier, ...], AfterValidator(_check_order)]
