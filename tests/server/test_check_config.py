"""`check-config` and `serve` look at everything before anything listens, and name every problem at once."""

from __future__ import annotations

import json
import subprocess
import sys
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from proxy.settings import SettingsError
from proxy.tenants.plan_file import read_file
from tests.server.commands import PROXY, SERVABLE, Commands, Done
from tests.support.secrets import SECRET
from tests.support.servers import free_port

GOOD_FILE: dict[str, Any] = {
    "plans": {"free": {"endpoints": ["fal-ai/llava-next"]}},
    "tenants": [{"id": "acme", "plan": "free", "allowed_origins": ["https://app.acme.example"]}],
}


@pytest.fixture
def check(commands: Commands, tmp_path: Path) -> Any:
    def check(environ: Mapping[str, str], command: str = "check-config") -> Done:
        return commands(command, environ=environ, cwd=tmp_path)

    return check


def variables_in(done: Done) -> list[str]:
    """The variables in the message, in its order."""
    assert (done.code, done.stdout) == (1, ""), done
    return [line.partition(":")[0] for line in done.stderr.splitlines()]


def test_a_real_process_says_ok(tmp_path: Path) -> None:
    (tmp_path / "plans.yaml").write_text(yaml.safe_dump(GOOD_FILE))
    environ = {**SERVABLE, "PROXY_CONFIG": "plans.yaml"}
    done = subprocess.run([*PROXY, "check-config"], env=environ, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


def test_a_check_makes_nothing(check: Any, tmp_path: Path) -> None:
    assert check(SERVABLE).code == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["check-config", "serve"])
def test_every_problem_is_in_one_message(check: Any, tmp_path: Path, command: str) -> None:
    plans = tmp_path / "plans.yaml"
    wrong_plans = {"free": {"endpoints": ["fal-ai/llava-nxt"]}, "none": {"endpoints": []}}
    plans.write_text(yaml.safe_dump({"plans": wrong_plans}))
    wrong = {
        "FAL_QUEUE_URL": "http://queue.fal.run",
        "PROXY_CONFIG": str(plans),
        "PROXY_SESSION_SECRETS": "canary-of-a-short-secret",
        "PROXY_PORT": "none",
        "PROXY_WORKERS": "2",
        "PROXY_ALLOWED_ORIGINS": "*",
    }
    done = check(wrong, command)
    assert sorted(variables_in(done)) == sorted(["FAL_KEY", "PROXY_CONFIG", *wrong])
    assert "plans.free.endpoints: fal-ai/llava-nxt is not in the catalogue" in done.stderr
    assert "plans.none.endpoints: allows nothing" in done.stderr
    assert "canary" not in done.stderr and "Traceback" not in done.stderr


def test_what_is_no_utf_8_is_named_in_json_too(tmp_path: Path) -> None:
    """Half a character in a plan file, and a byte in a variable that no text has."""
    (tmp_path / "plans.yaml").write_text(r'{"plans": {"free": {"endpoints": ["half\ud83d"]}}}')
    environ = {**SERVABLE, "PROXY_CONFIG": "plans.yaml", "PROXY_STATE_DIR": b"/no/such\xff/folder"}
    done = subprocess.run([*PROXY, "check-config", "--json"], env=environ, cwd=tmp_path, capture_output=True, text=True)
    problems = json.loads(done.stdout)["problems"]
    assert (done.returncode, done.stderr) == (1, "")
    assert {problem.partition(":")[0] for problem in problems} == {"PROXY_STATE_DIR", "PROXY_CONFIG"}


def test_serve_refuses_before_anything_listens_or_is_made(tmp_path: Path) -> None:
    port = free_port()
    environ = {"PROXY_PORT": str(port), "FAL_KEY": "an-id:canary", "PROXY_HOST": "127.0.0.1"}
    done = subprocess.run([*PROXY, "serve"], env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "PROXY_SESSION_SECRETS: is not set; make one with: openssl rand -base64 48\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["FAL_KEY", "PROXY_SESSION_SECRETS"])
@pytest.mark.parametrize("command", ["check-config", "serve"])
def test_missing_settings_are_named(check: Any, command: str, missing: str) -> None:
    done = check({name: value for name, value in SERVABLE.items() if name != missing}, command)
    assert variables_in(done) == [missing]


def test_secrets_are_read_from_files(check: Any, tmp_path: Path) -> None:
    for name, value in {"id": "an-id", "secret": "a-secret\n", "ring": SECRET}.items():
        (tmp_path / name).write_text(value)
    files = {"FAL_KEY_ID_FILE": "id", "FAL_KEY_SECRET_FILE": "secret", "PROXY_SESSION_SECRETS_FILE": "ring"}
    assert check(files).stdout == "ok\n"
    assert variables_in(check({**files, "FAL_KEY_SECRET_FILE": "gone"})) == ["FAL_KEY_SECRET_FILE", "FAL_KEY"]


def test_an_unknown_variable_fails_the_check(check: Any) -> None:
    done = check({**SERVABLE, "PROXY_SESSION_SECRET": "canary"})
    assert variables_in(done) == ["PROXY_SESSION_SECRET"]
    assert "did you mean PROXY_SESSION_SECRETS?" in done.stderr and "canary" not in done.stderr


def test_an_unknown_variable_is_named_beside_other_problems(check: Any) -> None:
    done = check({"FAL_KEY": "an-id:a-secret", "PROXY_SESSION_SECRET": SECRET})
    assert sorted(variables_in(done)) == ["PROXY_SESSION_SECRET", "PROXY_SESSION_SECRETS"]


def test_more_workers_from_the_command_line_need_redis(commands: Commands, tmp_path: Path) -> None:
    done = commands("serve", "--workers", "2", environ=SERVABLE, cwd=tmp_path)
    assert variables_in(done) == ["PROXY_WORKERS"] and "PROXY_REDIS_URL" in done.stderr


FREE = {"endpoints": ["fal-ai/llava-next"]}
REQUESTS = {"per": "subject", "unit": "requests", "limit": 5, "window": "day"}
FILES: dict[str, tuple[object, str]] = {
    "unknown-endpoint": ({"plans": {"free": {"endpoints": ["fal-ai/flux/dev"]}}}, "fal-ai/flux/dev is not in the"),
    "endpoint-of-another-case": ({"plans": {"free": {"endpoints": ["Fal-ai/llava-next"]}}}, "is not in the catalogue"),
    "plan-that-allows-nothing": ({"plans": {"free": {"endpoints": []}}}, "plans.free.endpoints: allows nothing"),
    "unknown-plan": ({**GOOD_FILE, "tenants": [{"id": "acme", "plan": "gold"}]}, "tenants.acme: there is no plan gold"),
    "unknown-guest-plan": (
        {**GOOD_FILE, "tenants": [{"id": "acme", "plan": "free", "guests": {"enabled": True, "plan": "gold"}}]},
        "tenants.acme: there is no plan gold",
    ),
    "unknown-key": ({**GOOD_FILE, "tenant": []}, "tenant: Extra inputs are not permitted"),
    "unknown-key-of-a-plan": (
        {"plans": {"free": {"endpoints": ["fal-ai/llava-next"], "max_token": 7}}},
        "plans.free.max_token: Extra inputs are not permitted",
    ),
    "no-endpoints": ({"plans": {"free": {}}}, "plans.free.endpoints: Field required"),
    "tenant-twice": (
        {**GOOD_FILE, "tenants": [{"id": "acme", "plan": "free"}, {"id": "acme", "plan": "free"}]},
        "tenants: acme stands there twice",
    ),
    "endpoint-twice": (
        {
            **GOOD_FILE,
            "endpoints": [{"id": "fal-ai/llava-next", "price_per_compute_second": price} for price in (1, 2)],
        },
        "endpoints: fal-ai/llava-next stands there twice",
    ),
    "origin-with-a-path": (
        {**GOOD_FILE, "tenants": [{"id": "acme", "plan": "free", "allowed_origins": ["https://app.example/x"]}]},
        "tenants.0.allowed_origins.0: 'https://app.example/x' is not an origin",
    ),
    "tenant-id-with-a-space": (
        {**GOOD_FILE, "tenants": [{"id": "a b", "plan": "free"}]},
        "tenants.0.id: String should match pattern",
    ),
    "schema-that-is-not-there": (
        {**GOOD_FILE, "endpoints": [{"id": "fal-ai/moondream2", "schema": "gone.json"}]},
        "endpoints: fal-ai/moondream2: the schema gone.json cannot be used",
    ),
    "unknown-key-with-a-near-one": (
        {"plans": {"free": {"endpoints": ["fal-ai/llava-next"], "uploads": {"max_byte": 7}}}},
        "plans.free.uploads.max_byte: Extra inputs are not permitted; did you mean max_bytes?",
    ),
    "unknown-endpoint-with-a-near-one": (
        {"plans": {"free": {"endpoints": ["fal-ai/llava-nxt"]}}},
        "fal-ai/llava-nxt is not in the catalogue; did you mean fal-ai/llava-next?",
    ),
    "unknown-plan-with-a-near-one": (
        {**GOOD_FILE, "tenants": [{"id": "acme", "plan": "fre"}]},
        "tenants.acme: there is no plan fre; did you mean free?",
    ),
    "a-price-without-end": (
        {**GOOD_FILE, "endpoints": [{"id": "fal-ai/llava-next", "price_per_compute_second": float("inf")}]},
        "endpoints.0.price_per_compute_second: Input should be less than or equal to 1000",
    ),
    "a-price-that-is-no-number": (
        {**GOOD_FILE, "endpoints": [{"id": "fal-ai/llava-next", "price_per_compute_second": float("nan")}]},
        "endpoints.0.price_per_compute_second: Input should be less than or equal to 1000",
    ),
    "money-without-a-price": (
        {"plans": {"free": {**FREE, "quotas": [{"per": "tenant", "unit": "usd", "limit": 5, "window": "day"}]}}},
        "plans.free.quotas: usd counts nothing for fal-ai/llava-next, which has no price",
    ),
    "a-quota-without-end": (
        {"plans": {"free": {**FREE, "quotas": [{"per": "tenant", "unit": "usd", "limit": 1e308, "window": "day"}]}}},
        "plans.free.quotas.0.limit: Input should be less than or equal to 1000000000000",
    ),
    "an-address-for-ever": (
        {"plans": {"free": {**FREE, "quotas": [{"per": "address", "unit": "usd", "limit": 1, "window": "lifetime"}]}}},
        "plans.free.quotas.0.window: an address passes from one visitor to the next; choose month or less per address",
    ),
    "truth-for-a-number": (
        {"plans": {"free": {**FREE, "max_tokens": True}}},
        "plans.free.max_tokens: must not be true or false",
    ),
    "more-bytes-than-a-column-holds": (
        {"plans": {"free": {**FREE, "uploads": {"max_bytes": 10**30, "bytes_per_day": 10**13}}}},
        "plans.free.uploads.bytes_per_day: Input should be less than or equal to 1000000000000",
    ),
    "more-slots-than-are-counted": (
        {"plans": {"free": {**FREE, "concurrency": {"tenant": 10**15}}}},
        "plans.free.concurrency.tenant: Input should be less than or equal to 1000000",
    ),
    "an-endpoint-with-a-long-id": (
        {**GOOD_FILE, "endpoints": [{"id": "fal-ai/" + "a" * 200}]},
        "endpoints.0.id: String should have at most 200 characters",
    ),
    "a-list": ([], "the file: Input should be a mapping with keys such as plans, tenants, endpoints"),
    "empty": (None, "the file: Input should be a mapping"),
    "plans-as-a-list": ({"plans": [FREE]}, "plans: Input should be a mapping"),
    "a-plan-that-is-a-list": (
        {"plans": {"free": ["fal-ai/llava-next"]}},
        "plans.free: Input should be a mapping with keys such as endpoints, session_ttl_seconds",
    ),
    "a-tenant-that-is-a-name": (
        {**GOOD_FILE, "tenants": ["acme"]},
        "tenants.0: Input should be a mapping with keys such as id, plan",
    ),
    "one-endpoint": (
        {"plans": {"free": {"endpoints": "fal-ai/llava-next"}}},
        "plans.free.endpoints: Input should be a list",
    ),
    "one-tenant": ({**GOOD_FILE, "tenants": {"id": "acme", "plan": "free"}}, "tenants: Input should be a list"),
    "a-schema-without-a-path": (
        {**GOOD_FILE, "endpoints": [{"id": "fal-ai/moondream2", "schema": 1}]},
        "endpoints.0.schema: Input should be the path of a file",
    ),
    "the-same-quota-twice": (
        {"plans": {"free": {**FREE, "quotas": [REQUESTS, {**REQUESTS, "limit": 50}]}}},
        "plans.free.quotas: the quota of requests per subject and day with the mode enforce stands there 2 times",
    ),
    "the-same-warning-twice": (
        {"plans": {"free": {**FREE, "quotas": [{**REQUESTS, "mode": "warn"}] * 2}}},
        "plans.free.quotas: the quota of requests per subject and day with the mode warn stands there 2 times",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_a_wrong_plan_file_is_refused(check: Any, tmp_path: Path, case: str) -> None:
    document, problem = FILES[case]
    (tmp_path / "plans.yaml").write_text(yaml.safe_dump(document))
    done = check({**SERVABLE, "PROXY_CONFIG": "plans.yaml"})
    assert set(variables_in(done)) == {"PROXY_CONFIG"}
    assert problem in done.stderr


@pytest.mark.parametrize("other", [{"per": "tenant"}, {"unit": "tokens"}, {"window": "hour"}, {"mode": "warn"}])
def test_quotas_that_differ_in_more_than_the_limit_may_stand_together(check: Any, tmp_path: Path, other: Any) -> None:
    plans = {"free": {**FREE, "quotas": [REQUESTS, REQUESTS | other]}}
    (tmp_path / "plans.yaml").write_text(yaml.safe_dump({**GOOD_FILE, "plans": plans}))
    assert check({**SERVABLE, "PROXY_CONFIG": "plans.yaml"}).stdout == "ok\n"


@pytest.mark.parametrize(
    "content",
    [
        b"plans: [",
        b"plans:\n\tfree: {}",
        b"\xff\xfe",
        b"!!python/object:os.system {}",
        b"plans: 2026-99-99",
        b"plans: " + b"9" * 5000,
    ],
    ids=lambda content: repr(content[:30]),
)
def test_a_plan_file_that_cannot_be_read_as_yaml_is_refused(check: Any, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "plans.yaml").write_bytes(content)
    done = check({**SERVABLE, "PROXY_CONFIG": "plans.yaml"})
    assert variables_in(done) == ["PROXY_CONFIG"]
    assert "plans.yaml" in done.stderr and "Traceback" not in done.stderr


def test_a_plan_file_without_end_is_not_read_to_it(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="zero has more than 8388608 bytes"):
        read_file(Path("/dev/zero"))


def test_an_endpoint_with_a_schema_of_the_operator(check: Any, tmp_path: Path) -> None:
    (tmp_path / "schemas").mkdir()
    (tmp_path / "schemas" / "moondream.json").write_text('{"type": "object", "required": ["image_url"]}')
    document = {
        "plans": {"free": {"endpoints": ["fal-ai/moondream-next"]}},
        "endpoints": [{"id": "fal-ai/moondream-next", "schema": "schemas/moondream.json"}],
    }
    (tmp_path / "plans.yaml").write_text(yaml.safe_dump(document))
    assert check({**SERVABLE, "PROXY_CONFIG": "plans.yaml"}).stdout == "ok\n"
    (tmp_path / "schemas" / "moondream.json").write_text('{"type": "nonsense"}')
    done = check({**SERVABLE, "PROXY_CONFIG": "plans.yaml"})
    assert set(variables_in(done)) == {"PROXY_CONFIG"} and "schemas/moondream.json cannot be used" in done.stderr


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ('{"type": "object", "type": "array"}', "the key 'type' stands in it twice; keep one"),
        ('{"properties": {"seed": {"maximum": NaN}}}', "it has NaN, which is no number of JSON"),
        ("[" * 100_000, "it is nested too deeply"),
    ],
    ids=["twice", "NaN", "deep"],
)
def test_a_schema_that_can_be_read_in_two_ways_is_refused(tmp_path: Path, schema: str, problem: str) -> None:
    (tmp_path / "schema.json").write_text(schema)
    endpoint = {"id": "fal-ai/moondream-next", "schema": "schema.json"}
    (tmp_path / "plans.yaml").write_text(yaml.safe_dump({**GOOD_FILE, "endpoints": [endpoint]}))
    with pytest.raises(SettingsError) as refused:
        read_file(tmp_path / "plans.yaml")
    named = f"PROXY_CONFIG: endpoints: fal-ai/moondream-next: the schema schema.json cannot be used ({problem})"
    assert refused.value.problems == [named]


def test_bad_usage_exits_with_2(commands: Commands, tmp_path: Path) -> None:
    for arguments in (["serve", "--port", "many"], ["no-such-command"], ["check-config", "--no-such-option"]):
        assert commands(*arguments, environ=SERVABLE, cwd=tmp_path).code == 2


def test_unknown_names_are_reported_beside_a_broken_form(check: Any, tmp_path: Path) -> None:
    plans = {"free": {"endpoints": ["fal-ai/llava-nxt"], "max_token": 7}, "paid": {"endpoints": "all"}}
    tenants = [{"id": "acme", "plan": "gold"}, {"id": "Acme!", "plan": "free"}]
    (tmp_path / "plans.yaml").write_text(yaml.safe_dump({"plans": plans, "tenants": tenants}))
    done = check({**SERVABLE, "PROXY_CONFIG": "plans.yaml"})
    assert set(variables_in(done)) == {"PROXY_CONFIG"}
    for problem in (
        "plans.free.max_token: Extra inputs are not permitted; did you mean max_tokens?",
        "plans.paid.endpoints: ",
        "plans.free.endpoints: fal-ai/llava-nxt is not in the catalogue",
        "tenants.acme: there is no plan gold",
        "tenants.1.id: String should match pattern",
    ):
        assert problem in done.stderr


TWICE = """\
plans:
  free: {endpoints: [fal-ai/llava-next], quotas: [{per: subject, unit: requests, limit: 5, window: day}]}
  paid: {endpoints: [fal-ai/llava-next], max_tokens: 8, max_tokens: 9}
  free: {endpoints: [fal-ai/llava-next]}
tenants:
  - {id: acme, plan: free, id: other}
"""


def test_keys_that_stand_twice_in_the_plan_file_are_all_named(check: Any, tmp_path: Path) -> None:
    (tmp_path / "plans.yaml").write_text(TWICE)
    done = check({**SERVABLE, "PROXY_CONFIG": "plans.yaml"})
    assert sorted(done.stderr.splitlines()) == [
        "PROXY_CONFIG: plans.free: stands at line 2 and again at line 4; keep one",
        "PROXY_CONFIG: plans.paid.max_tokens: stands at line 3 and again at line 3; keep one",
        "PROXY_CONFIG: tenants.0.id: stands at line 6 and again at line 6; keep one",
    ]


def test_a_wildcard_host_without_a_public_url_fails_the_check(check: Any) -> None:
    done = check({**SERVABLE, "PROXY_HOST": "0.0.0.0"})
    assert variables_in(done) == ["PROXY_PUBLIC_URL"]
    assert check({**SERVABLE, "PROXY_HOST": "0.0.0.0", "PROXY_PUBLIC_URL": "https://ai.example.com"}).code == 0


def test_origins_of_tenants_are_brought_to_the_spelling_that_browsers_send(check: Any, tmp_path: Path) -> None:
    origins = ["https://app.acme.example:443", "https://b\u00fccher.example"]
    tenants = [{"id": "acme", "plan": "free", "allowed_origins": origins}]
    (tmp_path / "plans.yaml").write_text(yaml.safe_dump({**GOOD_FILE, "tenants": tenants}))
    file, _ = read_file(tmp_path / "plans.yaml")
    assert file.tenants[0].allowed_origins == {"https://app.acme.example", "https://xn--bcher-kva.example"}


def test_every_mistake_about_issuers_is_named(check: Any, tmp_path: Path) -> None:
    issuer = {"issuer": "https://idp.example", "audience": "acme"}
    identity = [
        {**issuer, "jwks_url": "http://idp.example/jwks.json", "algorithms": ["HS256"]},
        {**issuer, "jwks_file": "none.json", "plans": {"claim": "tier", "map": {"pro": "paid"}}},
    ]
    tenants = [{"id": "acme", "plan": "free", "identity": identity}]
    (tmp_path / "plans.yaml").write_text(yaml.safe_dump({**GOOD_FILE, "tenants": tenants}))
    done = check({**SERVABLE, "PROXY_CONFIG": str(tmp_path / "plans.yaml")})
    assert variables_in(done) == ["PROXY_CONFIG"] * 5
    for problem in (
        "tenants.0.identity.0.jwks_url: must be https",
        "tenants.0.identity.0.algorithms.0: Input should be 'RS256'",
        "tenants.acme.identity: the key set none.json cannot be used (FileNotFoundError)",
        "tenants.acme: there is no plan paid",
        "acme and acme accept the same issuer https://idp.example and audience acme",
    ):
        assert problem in done.stderr


HOOK = {"url": "https://acme.example/hooks"}
CAPTCHA = {"proof": "turnstile", "plan": "free"}
PLAY = {
    "proof": "play_integrity",
    "plan": "free",
    "package": "com.acme.app",
    "verification_key": b64encode(
        generate_private_key(SECP256R1()).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    ).decode(),
}
ATTEST = {"proof": "app_attest", "plan": "free", "app": "A1B2C3D4E5.com.acme.app"}
#: What a tenant names, and what is said of it; {} stands for the folder.
LOST: dict[str, tuple[dict[str, Any], str]] = {
    "no file for alerts": (
        {"alerts_webhook": {**HOOK, "secret_file": "{}/none"}},
        "alerts_webhook: {}/none cannot be read (FileNotFoundError)",
    ),
    "a folder for alerts": (
        {"alerts_webhook": {**HOOK, "secret_file": "{}"}},
        "alerts_webhook: {} cannot be read (IsADirectoryError)",
    ),
    "another form for alerts": (
        {"alerts_webhook": {**HOOK, "secret_file": "{}/text"}},
        "alerts_webhook: must be whsec_",
    ),
    "no variable for alerts": (
        {"alerts_webhook": {**HOOK, "secret_env": "ACME_HOOK_SECRET"}},
        "alerts_webhook: there is no secret in ACME_HOOK_SECRET",
    ),
    "an empty file of a captcha": (
        {"guests": {"tiers": [{**CAPTCHA, "secret_file": "{}/empty"}]}},
        "guests.tiers.turnstile: there is no secret in {}/empty",
    ),
    "a captcha's secret in quotes": (
        {"guests": {"tiers": [{**CAPTCHA, "secret_file": "{}/quoted"}]}},
        "guests.tiers.turnstile: {}/quoted: contains quotes; remove them",
    ),
    "the proxy's own secret": (
        {"guests": {"tiers": [{**CAPTCHA, "secret_file": "{}/own"}]}},
        "guests.tiers.turnstile: the secret is one of the proxy's own",
    ),
    "no key of an app": (
        {"guests": {"tiers": [{**PLAY, "secret_file": "{}/none"}]}},
        "guests.tiers.play_integrity: {}/none cannot be read (FileNotFoundError)",
    ),
    "no key for an app": (
        {"guests": {"tiers": [{**PLAY, "secret_file": "{}/text"}]}},
        "guests.tiers.play_integrity: the decryption key is not base64 of 32 bytes",
    ),
    "no root": (
        {"guests": {"tiers": [{**ATTEST, "root_file": "{}/none"}]}},
        "guests.tiers.app_attest: {}/none cannot be read (FileNotFoundError)",
    ),
    "no certificate": (
        {"guests": {"tiers": [{**ATTEST, "root_file": "{}/text"}]}},
        "guests.tiers.app_attest: ",
    ),
}


def fill_in(value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        return {name: fill_in(inner, folder) for name, inner in value.items()}
    if isinstance(value, list):
        return [fill_in(inner, folder) for inner in value]
    return value.replace("{}", str(folder)) if isinstance(value, str) else value


@pytest.mark.parametrize("case", LOST)
def test_a_secret_or_certificate_that_cannot_be_used_is_named(check: Any, tmp_path: Path, case: str) -> None:
    for name, text in {"empty": "", "text": "canary-of-a-secret", "own": SECRET, "quoted": "'canary'"}.items():
        (tmp_path / name).write_text(text)
    named, problem = (fill_in(value, tmp_path) for value in LOST[case])
    tenants = [{"id": "acme", "plan": "free", **named}]
    (tmp_path / "plans.yaml").write_text(yaml.safe_dump({**GOOD_FILE, "tenants": tenants}))
    done = check({**SERVABLE, "PROXY_SESSION_SECRETS": SECRET, "PROXY_CONFIG": "plans.yaml"})
    assert variables_in(done) == ["PROXY_CONFIG"]
    assert f"PROXY_CONFIG: tenants.acme.{problem}" in done.stderr and "canary" not in done.stderr


def test_secrets_of_tenants_that_are_there_are_ok(check: Any, tmp_path: Path) -> None:
    key = f"whsec_{b64encode(bytes(32)).decode()}"
    (tmp_path / "hook").write_text(f"{key}, {key}\n")
    (tmp_path / "captcha").write_text("a-secret")
    tiers = [
        {**CAPTCHA, "secret_file": str(tmp_path / "captcha")},
        {**PLAY, "secret_env": "PLAY_SECRET"},
        ATTEST,
        {"proof": "pow", "plan": "free"},
    ]
    webhook = {**HOOK, "secret_file": str(tmp_path / "hook")}
    tenants = [{"id": "acme", "plan": "free", "guests": {"tiers": tiers}, "alerts_webhook": webhook}]
    (tmp_path / "plans.yaml").write_text(yaml.safe_dump({**GOOD_FILE, "tenants": tenants}))
    environ = {**SERVABLE, "PROXY_CONFIG": "plans.yaml", "PLAY_SECRET": b64encode(bytes(range(32))).decode()}
    assert check(environ).stdout == "ok\n"


def test_a_plan_that_strips_metadata_needs_the_picture_library(tmp_path: Path) -> None:
    """The image leaves it out."""
    plans = {"free": {**GOOD_FILE["plans"]["free"], "strip_metadata": True}, "other": GOOD_FILE["plans"]["free"]}
    (tmp_path / "plans.yaml").write_text(yaml.safe_dump({**GOOD_FILE, "plans": plans}))
    environ = {**SERVABLE, "PROXY_CONFIG": "plans.yaml"}
    for line, code in (("", 0), ("sys.modules['PIL'] = None;", 1)):
        script = f"import sys; {line} from proxy.cli import main; main()"
        command = [sys.executable, "-c", script, "check-config"]
        done = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
    (problem,) = done.stderr.splitlines()
    assert problem.startswith("PROXY_CONFIG: plans.free.strip_metadata: needs Pillow") and "PICTURES=on" in problem
