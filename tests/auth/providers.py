"""Tokens as identity providers issue them to an app's users, and how a tenant accepts each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.support.issuer import KeyHost, PrivateKey, private_key, public_jwk, sign

HOUR = 3600


@dataclass(frozen=True)
class Provider:
    """An identity provider.

    Attributes:
        header: that of its tokens, beside the algorithm and the key's id.
        claims: those of a paying user, beside the issuer and the times.
        accepts: what a plan file says of it, beside the issuer and where its keys are.
        subject: the user that a token names.
        jwk: what its key set says of a key.
        kind: of its keys.
        lifetime: of its tokens, in seconds.
    """

    name: str
    issuer: str
    claims: Mapping[str, Any]
    accepts: Mapping[str, Any]
    subject: str
    header: Mapping[str, Any] = field(default_factory=lambda: {"typ": "JWT"})
    jwk: Mapping[str, Any] = field(default_factory=dict)
    algorithm: str = "RS256"
    kind: str = "RSA"
    lifetime: int = HOUR

    @property
    def kid(self) -> str:
        return f"{self.name}-key-1"

    @property
    def key(self) -> PrivateKey:
        return private_key(self.name, self.kind)

    def published(self) -> dict[str, Any]:
        return public_jwk(self.key, kid=self.kid, **self.jwk)

    def identity(self, host: KeyHost) -> dict[str, Any]:
        """Its entry in a plan file; publishes its key."""
        url = host.publish(self.name, self.published())
        return {"issuer": self.issuer, "jwks_url": url, **self.accepts}

    def token(self, now: float, header: Mapping[str, Any] | None = None, **claims: Any) -> str:
        """A token; what is given as None is left out."""
        times = {"iat": int(now), "exp": int(now) + self.lifetime}
        said = {"iss": self.issuer, **times, **self.claims, **claims}
        head = {"alg": self.algorithm, "kid": self.kid, **self.header, **(header or {})}
        return sign(
            {name: value for name, value in head.items() if value is not None},
            {name: value for name, value in said.items() if value is not None},
            self.key,
        )


def tiers(claim: Any, value: str) -> dict[str, Any]:
    return {"claim": claim, "map": {value: "paid"}, "default": "free"}


AUTH0 = Provider(
    "auth0",
    "https://acme.eu.auth0.com/",
    {
        "sub": "auth0|5f7c8ec7c33c6c004bbafe82",
        "aud": ["https://ai.acme.example", "https://acme.eu.auth0.com/userinfo"],
        "azp": "my_client_id",
        "scope": "openid profile email",
        "https://acme.example/tier": "pro",
    },
    {"audience": "https://ai.acme.example", "plans": tiers("https://acme.example/tier", "pro")},
    "auth0|5f7c8ec7c33c6c004bbafe82",
    jwk={"alg": "RS256", "x5t": "hJRM3kzxd7PB0Ou8yHLEIIJRhzs", "x5c": ["MIIDBzCCAe+gAwIBAgIJ"]},
)
#: Auth0's other profile, that of RFC 9068.
AUTH0_9068 = Provider(
    "auth0rfc9068",
    "https://login.acme.example/",
    {
        "sub": "auth0|5f7c8ec7c33c6c004bbafe82",
        "aud": "https://ai.acme.example",
        "client_id": "my_client_id",
        "jti": "hYb6d1UuK0Jz0VhKUYW0Ru",
        "scope": "openid",
        "permissions": ["read:models", "pro"],
    },
    {"audience": "https://ai.acme.example", "plans": tiers("permissions", "pro")},
    "auth0|5f7c8ec7c33c6c004bbafe82",
    header={"typ": "at+jwt"},
    jwk={"alg": "RS256"},
)
#: Clerk's session tokens have no audience, only the origin of the page that got them.
CLERK = Provider(
    "clerk",
    "https://clerk.acme.example",
    {
        "sub": "user_2WdTqoKqRzXWQ5mKkVCvTzbOkVd",
        "azp": "https://app.acme.example",
        "fva": [0, -1],
        "sid": "sess_2WdTqvLGtVnaTFbdMEdYOnvaFzq",
        "sts": "active",
        "v": 2,
        "pla": "u:pro",
        "fea": "u:images",
    },
    {"audience": "https://app.acme.example", "audience_claim": "azp", "plans": tiers("pla", "u:pro")},
    "user_2WdTqoKqRzXWQ5mKkVCvTzbOkVd",
    header={"typ": "JWT", "cat": "cl_B7d4PD111AAA"},
    jwk={"alg": "RS256"},
    lifetime=60,
)
SUPABASE = Provider(
    "supabase",
    "https://abcdefghijklm.supabase.co/auth/v1",
    {
        "sub": "8ccaa7af-909f-44e7-84cb-67cdccb56be6",
        "aud": "authenticated",
        "role": "authenticated",
        "email": "alice@acme.example",
        "phone": "",
        "app_metadata": {"provider": "email", "providers": ["email"], "plan": "pro"},
        "user_metadata": {"email_verified": True},
        "aal": "aal1",
        "amr": [{"method": "password", "timestamp": 1769772000}],
        "session_id": "1b31d3a2-5d4f-4bb5-9a0f-b5b2a4c0a3a1",
        "is_anonymous": False,
    },
    {"audience": "authenticated", "algorithms": ["ES256"], "plans": tiers(["app_metadata", "plan"], "pro")},
    "8ccaa7af-909f-44e7-84cb-67cdccb56be6",
    jwk={"alg": "ES256", "key_ops": ["verify"], "ext": True},
    algorithm="ES256",
    kind="P-256",
)
FIREBASE = Provider(
    "firebase",
    "https://securetoken.google.com/acme-app",
    {
        "sub": "b4dLbY0UxPQ3QfVZ9xPg7oZ2aXk1",
        "aud": "acme-app",
        "auth_time": 1769772000,
        "user_id": "b4dLbY0UxPQ3QfVZ9xPg7oZ2aXk1",
        "email": "alice@acme.example",
        "email_verified": False,
        "firebase": {"identities": {"email": ["alice@acme.example"]}, "sign_in_provider": "password"},
        "premium": True,
    },
    {"audience": "acme-app", "plans": tiers("premium", "true")},
    "b4dLbY0UxPQ3QfVZ9xPg7oZ2aXk1",
    jwk={"alg": "RS256"},
)
#: Access tokens of Cognito have no audience and no type.
COGNITO = Provider(
    "cognito",
    "https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_example",
    {
        "sub": "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee",
        "client_id": "xxxxxxxxxxxxexample",
        "cognito:groups": ["beta", "pro"],
        "token_use": "access",
        "scope": "aws.cognito.signin.user.admin",
        "auth_time": 1769772000,
        "jti": "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee",
        "event_id": "64f513be-32db-42b0-b78e-b02127b4f463",
        "username": "alice",
        "version": 2,
    },
    {"audience": "xxxxxxxxxxxxexample", "audience_claim": "client_id", "plans": tiers("cognito:groups", "pro")},
    "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee",
    header={},
    jwk={"alg": "RS256"},
)
#: `sub` of Entra ID differs from app to app; `oid` is the user. Its keys have no `alg`.
ENTRA = Provider(
    "entra",
    "https://login.microsoftonline.com/6babcaad-604b-40ac-a9d7-9fd97c0b779f/v2.0",
    {
        "sub": "AAAAAAAAAAAAAAAAAAAAAIkzqFVrSaSaFHy782bbtaQ",
        "aud": "6e74172b-be56-4843-9ff4-e66a39bb12e3",
        "aio": "AXQAi/8IAAAA",
        "azp": "6e74172b-be56-4843-9ff4-e66a39bb12e3",
        "azpacr": "0",
        "name": "Alice",
        "oid": "690222be-ff1a-4d56-abd1-7e4f7d38e474",
        "preferred_username": "alice@acme.example",
        "rh": "I",
        "roles": ["Pro.User"],
        "scp": "access_as_user",
        "tid": "6babcaad-604b-40ac-a9d7-9fd97c0b779f",
        "uti": "fqiBqXLPj0eQa82S-IYFAA",
        "ver": "2.0",
    },
    {
        "audience": "6e74172b-be56-4843-9ff4-e66a39bb12e3",
        "subject_claim": "oid",
        "plans": tiers("roles", "Pro.User"),
    },
    "690222be-ff1a-4d56-abd1-7e4f7d38e474",
    header={"typ": "JWT", "x5t": "7XSTMhCWNDqgJTbMGXHcjlBfAVk"},
    jwk={"x5t": "7XSTMhCWNDqgJTbMGXHcjlBfAVk", "issuer": "https://login.microsoftonline.com/{tenantid}/v2.0"},
)
KEYCLOAK = Provider(
    "keycloak",
    "https://sso.acme.example/realms/acme",
    {
        "sub": "1a5f2c5e-8e06-4f3c-9f7d-3bd5b3c2f1aa",
        "aud": ["fal-proxy", "account"],
        "auth_time": 1769772000,
        "jti": "onrtac:2f3b7c2e-9b0a-4c6d-8b7e-9d2f1f0e5a11",
        "typ": "Bearer",
        "azp": "web",
        "sid": "4d7b1d0e-0b0a-4a0e-8f3c-2c9a6b1f7e55",
        "acr": "1",
        "allowed-origins": ["https://app.acme.example"],
        "realm_access": {"roles": ["offline_access", "pro"]},
        "resource_access": {"account": {"roles": ["manage-account"]}},
        "scope": "openid email profile",
        "email_verified": False,
    },
    {"audience": "fal-proxy", "plans": tiers(["realm_access", "roles"], "pro")},
    "1a5f2c5e-8e06-4f3c-9f7d-3bd5b3c2f1aa",
    jwk={"alg": "RS256"},
    lifetime=300,
)
PROVIDERS = {one.name: one for one in (AUTH0, AUTH0_9068, CLERK, SUPABASE, FIREBASE, COGNITO, ENTRA, KEYCLOAK)}
