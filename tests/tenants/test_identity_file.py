"""Issuers in the plan file: they are read with their keys, and every mistake is reported before any call."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from proxy.settings import SettingsError
from proxy.tenants.plan_file import read_file
from proxy.tenants.plans import PlanFile
from tests.support.issuer import private_key, public_jwk
from tests.support.limited import NEXT

DOCS = Path(__file__).parents[2] / "docs"
PLANS = {"free": {"endpoints": [NEXT]}, "paid": {"endpoints": [NEXT]}}
URL = "https://idp.example/jwks.json"
GOOD: dict[str, Any] = {"issuer": "https://idp.example/", "audience": "acme", "jwks_url": URL}
KEY = public_jwk(private_key("of a file"), kid="one")


def read(folder: Path, *identities: dict[str, Any], other: list[dict[str, Any]] | None = None) -> PlanFile:
    tenants = [
        {"id": "acme", "plan": "free", "identity": list(identities)},
        {"id": "globex", "plan": "free", "identity": other or []},
    ]
    (folder / "plans.yaml").write_text(yaml.safe_dump({"plans": PLANS, "tenants": tenants}, sort_keys=False))
    return read_file(folder / "plans.yaml")[0]


@pytest.mark.parametrize("example", re.findall(r"^```yaml\n(.*?)^```", (DOCS / "identity.md").read_text(), re.S | re.M))
def test_each_example_is_a_plan_file(tmp_path: Path, example: str) -> None:
    document = {"plans": PLANS, **yaml.safe_load(example)}
    (tmp_path / "plans.yaml").write_text(yaml.safe_dump(document))
    (identity,) = read_file(tmp_path / "plans.yaml")[0].tenants[0].identity
    assert identity.plans is not None and identity.plans.default == "free"
    assert jsonschema_rs.is_valid(json.loads((DOCS / "plan-file.schema.json").read_text()), document)


def test_issuers_survive_the_way_through_the_database(tmp_path: Path) -> None:
    plans = {"claim": ["a", "b"], "map": {"z": "paid", "a": "free"}}
    file = read(tmp_path, {**GOOD, "audience": ["b", "a"], "plans": plans, "algorithms": ["ES256", "EdDSA"]})
    written = file.tenants[0].model_dump(mode="json")
    assert written["identity"][0]["audience"] == ["a", "b"]
    # The order decides, and two objects with another order of keys are the same JSON.
    assert written["identity"][0]["plans"]["map"] == [["z", "paid"], ["a", "free"]]
    assert type(file.tenants[0]).model_validate(json.loads(json.dumps(written))) == file.tenants[0]
    assert "identity" not in file.tenants[1].model_dump(mode="json"), "an older version could not read it"


def test_a_file_of_keys_becomes_part_of_the_tenant(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [KEY]}))
    (identity,) = read(tmp_path, {**GOOD, "jwks_url": None, "jwks_file": "keys.json"}).tenants[0].identity
    assert (identity.jwks, identity.jwks_file) == ({"keys": [KEY]}, None)
    assert len(identity.key_set.find("one", "RS256")) == 1


def local(text: str | bytes) -> Callable[[Path], dict[str, Any]]:
    """An issuer whose keys are in a file with this text."""

    def write(folder: Path) -> dict[str, Any]:
        (folder / "keys.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        return {**GOOD, "jwks_url": None, "jwks_file": "keys.json"}

    return write


def entry(**changes: Any) -> Callable[[Path], dict[str, Any]]:
    return lambda _: {name: value for name, value in (GOOD | changes).items() if value is not None}


def keys(*listed: Any) -> str:
    return json.dumps({"keys": listed})


WRONG: dict[str, tuple[Callable[[Path], dict[str, Any]], str]] = {
    "no issuer": (entry(issuer=None), "issuer: Field required"),
    "no audience": (entry(audience=None), "audience: Field required"),
    "an empty list of audiences": (entry(audience=[]), "audience: "),
    "too many audiences": (entry(audience=[str(number) for number in range(21)]), "audience: "),
    "an audience that is too long": (entry(audience="a" * 501), "audience.0: "),
    "another claim for the audience": (entry(audience_claim="scope"), "audience_claim: "),
    "plain http": (entry(jwks_url="http://idp.example/jwks.json"), "jwks_url: must be https"),
    "no URL": (entry(jwks_url="idp.example"), "jwks_url: must be a URL"),
    "a URL with a space": (entry(jwks_url="https://idp.example/ keys"), "jwks_url: must be a URL"),
    "a URL with a wrong port": (entry(jwks_url="https://idp.example:99999/"), "jwks_url: must be a URL"),
    "a URL with a password": (entry(jwks_url="https://a:b@idp.example/"), "jwks_url: must have no user"),
    "a URL that is too long": (entry(jwks_url=f"https://idp.example/{'a' * 2000}"), "jwks_url: "),
    "no keys": (entry(jwks_url=None), "name where the issuer's keys are"),
    "two places of keys": (entry(jwks={"keys": [KEY]}), "name where the issuer's keys are"),
    "an algorithm with a secret": (entry(algorithms=["HS256"]), "algorithms.0: "),
    "no algorithm": (entry(algorithms=["none"]), "algorithms.0: "),
    "an empty list of algorithms": (entry(algorithms=[]), "algorithms: "),
    "an unknown plan": (
        entry(plans={"claim": "t", "map": {"pro": "payd"}}),
        "there is no plan payd; did you mean paid?",
    ),
    "an unknown default": (entry(plans={"claim": "t", "map": {"a": "paid"}, "default": "fre"}), "no plan fre;"),
    "a choice of nothing": (entry(plans={"claim": "t", "map": {}}), "plans.map: "),
    "a choice in no pairs": (entry(plans={"claim": "t", "map": [None]}), "plans.map: must map what the claim says"),
    "a choice in pairs of lists": (entry(plans={"claim": "t", "map": [[[], "paid"]]}), "plans.map: must map"),
    "a choice without a claim": (entry(plans={"map": {"a": "paid"}}), "plans.claim: Field required"),
    "too many choices": (entry(plans={"claim": "t", "map": {str(n): "paid" for n in range(101)}}), "plans.map: "),
    "an empty path to a claim": (entry(subject_claim=[]), "subject_claim"),
    "a path that is too deep": (entry(subject_claim=["a"] * 9), "subject_claim"),
    "an unknown key": (entry(narrow={"endpoint_claim": "a"}), "did you mean endpoints_claim?"),
    "a file that is not there": (
        lambda _: {**GOOD, "jwks_url": None, "jwks_file": "none.json"},
        "the key set none.json cannot be used (FileNotFoundError)",
    ),
    "a file that is no JSON": (local("{"), "keys.json cannot be used"),
    "a file of bytes": (local(b'{"keys": "\xff"}'), "keys.json cannot be used (UnicodeDecodeError)"),
    "a file with a key twice": (local('{"keys": [], "keys": []}'), "the key 'keys' stands in it twice"),
    "a file that is too deep": (local("[" * 100_000), "it is nested too deeply"),
    "a file without keys": (local("{}"), "is not a JWK Set"),
    "an empty set": (local(keys()), "no key that verifies signatures"),
    "a set of other keys": (local(keys(7, {"kty": "X"}, {**KEY, "use": "enc"})), "no key that verifies signatures"),
    "a broken key": (local(keys({**KEY, "n": "!"})), "no key that verifies signatures"),
    "a private key": (local(keys({**KEY, "d": "AQAB"})), "has a private key"),
    "a shared secret": (local(keys(KEY, {"kty": "oct", "k": "c2VjcmV0"})), "has a private key or a shared secret"),
    "too many keys": (local(keys(*[KEY] * 101)), "at most 100"),
    "a file that is too large": (local(keys(KEY, "a" * 256 * 1024)), "more than 262144 bytes"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_entry_is_named(tmp_path: Path, wrong: str) -> None:
    make, problem = WRONG[wrong]
    with pytest.raises(SettingsError) as refused:
        read(tmp_path, make(tmp_path))
    assert problem in str(refused.value) and "c2VjcmV0" not in str(refused.value)


def test_too_many_issuers_are_refused(tmp_path: Path) -> None:
    issuers = [{**GOOD, "issuer": f"https://{number}.example"} for number in range(21)]
    with pytest.raises(SettingsError, match="identity"):
        read(tmp_path, *issuers)


@pytest.mark.parametrize("audience", ["acme", ["more", "acme"]])
def test_an_issuer_and_audience_belong_to_one_tenant(tmp_path: Path, audience: Any) -> None:
    same = {**GOOD, "audience": audience}
    message = "acme and globex accept the same issuer https://idp.example/ and audience acme"
    with pytest.raises(SettingsError, match=message):
        read(tmp_path, GOOD, other=[same])
    with pytest.raises(SettingsError, match="acme and acme accept"):
        read(tmp_path, GOOD, same)
    assert read(tmp_path, GOOD, other=[{**GOOD, "audience": "globex"}])
