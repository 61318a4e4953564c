"""Tiers of guests in the plan file; every mistake is reported when the file is read."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from proxy.sandbox.play_integrity import VERIFICATION_KEY
from proxy.settings import SettingsError
from proxy.tenants.plan_file import json_schema, read_file
from proxy.tenants.plans import Tenant
from proxy.tenants.tiers import AppAttestTier, AppCheckTier, OpenTier, PlayIntegrityTier, PowTier, VerifiedTier
from tests.support.limited import NEXT

GUESTS = Path(__file__).parents[2] / "docs" / "guests.md"
PLANS = {"free": {"endpoints": [NEXT]}, "taste": {"endpoints": [NEXT]}, "crumb": {"endpoints": [NEXT]}}
POW = {"proof": "pow", "plan": "taste"}
TURNSTILE = {"proof": "turnstile", "plan": "taste", "secret_env": "TURNSTILE_SECRET"}
APP_CHECK = {"proof": "app_check", "plan": "taste", "project": "123456789012"}
PLAY = {
    "proof": "play_integrity",
    "plan": "taste",
    "package": "com.acme.app",
    "secret_env": "PLAY_SECRET",
    "verification_key": VERIFICATION_KEY,
}
ATTEST = {"proof": "app_attest", "plan": "taste", "app": "A1B2C3D4E5.com.acme.app"}
NONE = {"proof": "none", "plan": "crumb"}


def key_text(curve: ec.EllipticCurve, *, private: bool) -> str:
    key = ec.generate_private_key(curve)
    if private:
        return b64encode(key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())).decode()
    return b64encode(key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).decode()


OTHER_CURVE, PRIVATE = key_text(ec.SECP384R1(), private=False), key_text(ec.SECP256R1(), private=True)


def document(*tiers: Any) -> dict[str, Any]:
    tenant = {"id": "acme", "plan": "free", "guests": {"enabled": True, "tiers": list(tiers)}}
    return {"plans": PLANS, "tenants": [tenant, {"id": "globex", "plan": "free"}]}


def read(folder: Path, *tiers: Any) -> tuple[Tenant, ...]:
    (folder / "plans.yaml").write_text(yaml.safe_dump(document(*tiers)))
    return read_file(folder / "plans.yaml")[0].tenants


def test_tiers_are_read_written_to_the_database_and_read_again(tmp_path: Path) -> None:
    acme, globex = read(tmp_path, ATTEST, PLAY, APP_CHECK, TURNSTILE, POW, NONE)
    assert acme.guests.tiers == (
        AppAttestTier.model_validate(ATTEST),
        PlayIntegrityTier.model_validate(PLAY),
        AppCheckTier(proof="app_check", plan="taste", project="123456789012"),
        VerifiedTier(proof="turnstile", plan="taste", secret_env="TURNSTILE_SECRET"),
        PowTier(proof="pow", plan="taste", difficulty=50_000),
        OpenTier(proof="none", plan="crumb"),
    )
    assert Tenant.model_validate(json.loads(json.dumps(acme.model_dump(mode="json")))) == acme
    assert "tiers" not in globex.model_dump(mode="json")["guests"], "an older version could not read it"
    assert jsonschema_rs.is_valid(json_schema(), document(ATTEST, PLAY, APP_CHECK, TURNSTILE, POW, NONE))


@pytest.mark.parametrize("example", re.findall(r"^```yaml\n(.*?)^```", GUESTS.read_text(), re.S | re.M))
def test_each_example_of_the_page_is_a_list_of_tiers(tmp_path: Path, example: str) -> None:
    found = yaml.safe_load(example)
    tiers = found["tiers"] if "tiers" in found else found["tenants"][0]["guests"]["tiers"]
    assert len(read(tmp_path, *tiers)[0].guests.tiers) == 2
    assert jsonschema_rs.is_valid(json_schema(), document(*tiers))


UNKNOWN = (
    "tiers.0: the proof must be one of none, pow, turnstile, hcaptcha, recaptcha, app_check, play_integrity, app_attest"
)
WRONG: dict[str, tuple[list[Any], str]] = {
    "an unknown proof": ([{"proof": "luck", "plan": "taste"}], UNKNOWN),
    "no proof": ([{"plan": "taste"}], UNKNOWN),
    "no tier": (["pow"], UNKNOWN),
    "no plan": ([{"proof": "pow"}], "tiers.0.pow.plan: Field required"),
    "an unknown plan": ([{**POW, "plan": "tast"}], "tenants.acme: there is no plan tast; did you mean taste?"),
    "an unknown key": (
        [{**POW, "dificulty": 7}],
        "tiers.0.pow.dificulty: Extra inputs are not permitted; did you mean",
    ),
    "no difficulty": ([{**POW, "difficulty": 0}], "tiers.0.pow.difficulty: Input should be greater than or equal to 1"),
    "too difficult": ([{**POW, "difficulty": 1_000_001}], "tiers.0.pow.difficulty: Input should be less than"),
    "a truth": ([{**POW, "difficulty": True}], "tiers.0.pow.difficulty: must not be true or false"),
    "no secret": ([{**TURNSTILE, "secret_env": None}], "tiers.0.verified: name where the secret is"),
    "two secrets": ([{**TURNSTILE, "secret_file": "/run/one"}], "tiers.0.verified: name where the secret is"),
    "fal's key": ([{**TURNSTILE, "secret_env": "FAL_KEY_SECRET"}], "tiers.0.verified: FAL_KEY_SECRET is one of"),
    "the proxy's": (
        [{**TURNSTILE, "secret_env": "PROXY_X_SECRET"}],
        "verified: PROXY_X_SECRET is one of",
    ),
    "no name": ([{**TURNSTILE, "secret_env": "HOME"}], "tiers.0.verified.secret_env: String should match"),
    "no path": ([{**TURNSTILE, "secret_env": None, "secret_file": "one"}], "tiers.0.verified.secret_file: String"),
    "a score": ([{**TURNSTILE, "min_score": 1.1}], "tiers.0.verified.min_score: Input should be less than"),
    "no project": ([{"proof": "app_check", "plan": "taste"}], "tiers.0.app_check.project: Field required"),
    "a name of a project": ([{**APP_CHECK, "project": "acme-app"}], "app_check.project: String should match"),
    "a long project": ([{**APP_CHECK, "project": "1" * 21}], "app_check.project: String should match"),
    "no apps": ([{**APP_CHECK, "apps": []}], "tiers.0.app_check.apps: Input should have 1 or more items"),
    "many apps": ([{**APP_CHECK, "apps": [str(n) for n in range(101)]}], "apps: Input should have 100 or fewer items"),
    "an empty app": ([{**APP_CHECK, "apps": [""]}], "tiers.0.app_check.apps.0: String should have at least 1"),
    "a long app": ([{**APP_CHECK, "apps": ["x" * 201]}], "tiers.0.app_check.apps.0: String should have at most 200"),
    "no package": ([{**PLAY, "package": "acme"}], "tiers.0.play_integrity.package: String should match"),
    "a long package": ([{**PLAY, "package": f"com.{'a' * 252}"}], "play_integrity.package: String should have at most"),
    "no decryption key": ([{**PLAY, "secret_env": None}], "tiers.0.play_integrity: name where the secret is"),
    "no verification key": ([{**PLAY, "verification_key": "AAAA"}], "must be a public key of the curve P-256"),
    "a key of another curve": ([{**PLAY, "verification_key": OTHER_CURVE}], "must be a public key of the curve P-256"),
    "a private key": ([{**PLAY, "verification_key": PRIVATE}], "must be a public key of the curve P-256"),
    "a long key": ([{**PLAY, "verification_key": "A" * 501}], "verification_key: String should have at most 500"),
    "an unknown verdict": ([{**PLAY, "app_verdicts": ["UNEVALUATED"]}], "play_integrity.app_verdicts.0: Input should"),
    "no verdict": ([{**PLAY, "app_verdicts": []}], "app_verdicts: Input should have 1 or more items"),
    "an unknown device": ([{**PLAY, "device_verdict": "ANY"}], "tiers.0.play_integrity.device_verdict: Input should"),
    "no team": ([{**ATTEST, "app": "com.acme.app"}], "tiers.0.app_attest.app: String should match"),
    "a long app's id": ([{**ATTEST, "app": f"A1B2C3D4E5.{'a' * 200}"}], "app_attest.app: String should have at most"),
    "an unknown environment": ([{**ATTEST, "environment": "test"}], "app_attest.environment: Input should be"),
    "a root without a path": ([{**ATTEST, "root_file": "root.pem"}], "app_attest.root_file: String should match"),
    "one twice": ([POW, POW], "tiers: two tiers have the proof pow; keep one of them"),
    "none too early": ([NONE, POW], "tiers: the tier with the proof none must be the last"),
}


@pytest.mark.parametrize("case", WRONG)
def test_every_mistake_is_named(tmp_path: Path, case: str) -> None:
    tiers, problem = WRONG[case]
    with pytest.raises(SettingsError) as caught:
        read(tmp_path, *tiers)
    assert problem in str(caught.value)
