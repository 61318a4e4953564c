"""The issuers of identity tokens that a tenant trusts, and what their claims mean, in the form of the plan file."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, PlainSerializer, model_validator

from proxy.tenants.key_set import KeySet
from proxy.tenants.strict import Name, Several, Strict

#: Signatures that a public key verifies. With a shared secret, anyone who verifies could also sign.
Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
MOST_AUDIENCES = 20
MOST_CHOICES = 100


def _to_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _to_mapping(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    try:
        return dict(value)
    except (TypeError, ValueError):
        raise ValueError("must map what the claim says to plans, such as {pro: paid}") from None


def _check_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_complete = bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_complete = False
    if not url.isprintable() or not url.isascii() or " " in url or not is_complete:
        raise ValueError("must be a URL such as https://acme.eu.auth0.com/.well-known/jwks.json")
    if parts.scheme != "https":
        raise ValueError("must be https: an attacker who changes the keys on their way could sign as any user")
    if "@" in parts.netloc or parts.fragment:
        raise ValueError("must have no user, password or fragment")
    return url


Text = Annotated[str, Field(min_length=1, max_length=500)]
#: A claim by its name, or by the names on the way to it: `[realm_access, roles]`.
Claim = Text | Annotated[tuple[Text, ...], Field(min_length=1, max_length=8)]
Audiences = Annotated[
    Several[Text],
    Field(min_length=1, max_length=MOST_AUDIENCES),
    BeforeValidator(
        _to_list,
        json_schema_input_type=Text | Annotated[list[Text], Field(min_length=1, max_length=MOST_AUDIENCES)],
    ),
]
#: Written down as pairs: the order counts, and that of an object's keys is lost in comparisons.
PlanMap = Annotated[
    dict[Text, Name],
    BeforeValidator(_to_mapping),
    PlainSerializer(lambda plans: list(plans.items()), when_used="json"),
    Field(min_length=1, max_length=MOST_CHOICES),
]
JwksUrl = Annotated[str, Field(max_length=2000), AfterValidator(_check_url)]


class PlanChoice(Strict):
    """Which plan a token gives: the first of `map` that the claim has, or else `default`; without it, none.

    The claim is a text, a number, true or false, or a list of these.
    """

    claim: Claim
    map: PlanMap
    default: Name | None = None


class Narrowing(Strict):
    """Claims that allow less than the plan. A token without the claim has all of its plan."""

    endpoints_claim: Claim | None = None
    max_tokens_claim: Claim | None = None
    max_prompt_chars_claim: Claim | None = None


class Identity(Strict):
    """An issuer whose tokens are accepted for a tenant.

    `jwks_file` is a JWK Set, relative to the plan file; what it holds becomes `jwks`.
    """

    issuer: Text
    audience: Audiences
    audience_claim: Literal["aud", "azp", "client_id"] = "aud"
    jwks_url: JwksUrl | None = None
    jwks_file: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    jwks: dict[str, JsonValue] | None = None
    algorithms: Annotated[Several[Algorithm], Field(min_length=1)] = frozenset[Algorithm]({"RS256"})
    subject_claim: Claim = "sub"
    plans: PlanChoice | None = None
    narrow: Narrowing = Narrowing()

    @model_validator(mode="after")
    def _check_keys(self) -> Identity:
        if sum(source is not None for source in (self.jwks_url, self.jwks_file, self.jwks)) != 1:
            raise ValueError("name where the issuer's keys are: one of jwks_url, jwks_file and jwks")
        if self.jwks is not None:
            _ = self.key_set
        return self

    @cached_property
    def key_set(self) -> KeySet:
        """The keys of `jwks`.

        Raises:
            ValueError: it is no set of public keys.
        """
        return KeySet(self.jwks)
