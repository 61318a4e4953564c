"""Guests who prove work before they get a session: each tier, each wrong proof, and that a proof counts once."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import altcha
import httpx
import pytest
import yaml

from proxy.auth.proof_of_work import EXPIRY_SECONDS, ProofOfWork
from proxy.auth.sessions import Sessions
from proxy.errors import ProofInvalid
from proxy.settings import Secret
from tests.security.serving import serving
from tests.support.clock import MovableClock
from tests.support.limited import COUNTING, NEXT, assert_refused_with, limited_proxy, plan
from tests.support.redis import Redis, running_redis
from tests.support.sandbox import SandboxControl
from tests.support.secrets import SECRET
from tests.support.stack import Stack, sandbox_environ

PAGE, OTHER_PAGE = "https://app.acme.example", "https://www.acme.example"
CHALLENGE, GUEST = "/v1/sessions/challenge", "/v1/sessions/guest"
POW = {"proof": "pow", "plan": "taste", "difficulty": 50}
NONE = {"proof": "none", "plan": "crumb"}
PLANS = {"taste": plan(session_ttl_seconds=900), "crumb": plan(endpoints=[NEXT]), "other": plan(endpoints=[COUNTING])}
TIERS: dict[str, list[dict[str, Any]]] = {"work": [POW], "both": [POW, NONE], "free": [NONE], "open": []}
#: Each guest has an address of its own, unless a test names one.
ADDRESSES = (f"192.0.{number // 250}.{number % 250 + 1}" for number in itertools.count())


def tenants(own_origin: str = PAGE) -> dict[str, dict[str, Any]]:
    """A tenant for each list of tiers; `rated` limits addresses."""
    named = {name: {"tiers": tiers, "per_address": None} for name, tiers in TIERS.items()}
    named["rated"] = {"tiers": [POW], "per_address": "2/hour"}
    return {
        name: {"plan": "other", "allowed_origins": [PAGE, OTHER_PAGE, own_origin], "guests": {"enabled": True, **more}}
        for name, more in named.items()
    }


@pytest.fixture(scope="module")
def limited(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with proving(shared_sandbox, tmp_path_factory.mktemp("proofs")) as stack:
        yield stack


def proving(sandbox: SandboxControl, folder: Path, **more: Any) -> contextlib.AbstractContextManager[Stack]:
    """A proxy with these tenants, which believes forwarded addresses from the loopback."""
    trusting = {"proxy_headers": True, "forwarded_allow_ips": ["127.0.0.0/8"]}
    plans = {**PLANS, **dict.fromkeys(tenants(), PLANS["other"])}
    own = {"PROXY_PUBLIC_URL": "https://ai.acme.example", **more.pop("environ", {})}
    listed = tenants("https://ai.acme.example")
    return limited_proxy(sandbox, folder, plans, tenants=listed, server=trusting, environ=own, **more)


@pytest.fixture
def proxy(limited: Stack, sandbox: SandboxControl) -> Stack:
    return limited


class Server(NamedTuple):
    """A proxy of which only the address is known."""

    url: str


def ask(
    proxy: Stack | Server, method: str, path: str, address: str = "", origin: str = PAGE, **more: Any
) -> httpx.Response:
    headers = {"x-forwarded-for": address or next(ADDRESSES), **({"origin": origin} if origin else {})}
    return httpx.request(method, f"{proxy.url}{path}", headers=headers, trust_env=False, timeout=60, **more)


def challenge(proxy: Stack | Server, tenant: str = "work", origin: str = PAGE) -> dict[str, Any]:
    answer = ask(proxy, "GET", CHALLENGE, origin=origin, params={"tenant": tenant})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def solve(given: dict[str, Any]) -> dict[str, Any]:
    """What ALTCHA's solver makes of a challenge."""
    made = altcha.Challenge.from_dict(given)
    solution = altcha.solve_challenge(made)
    assert solution is not None
    return altcha.Payload(made, solution).to_dict()


def encode(payload: Any) -> str:
    return base64.b64encode(json.dumps(payload).encode()).decode()


def give(proxy: Stack | Server, value: str, tenant: str = "work", kind: str = "pow", **more: Any) -> httpx.Response:
    form = {"tenant": tenant, "proof": {"kind": kind, "value": value}}
    return ask(proxy, "POST", GUEST, json=form, **more)


def without_proof(proxy: Stack, tenant: str) -> httpx.Response:
    return ask(proxy, "POST", GUEST, json={"tenant": tenant})


# --- tiers


@pytest.mark.parametrize("tenant", ["work", "both"])
def test_a_solved_challenge_gives_the_plan_of_its_tier(proxy: Stack, tenant: str) -> None:
    answer = give(proxy, encode(solve(challenge(proxy, tenant))), tenant)
    assert (answer.status_code, answer.json()["endpoints"]) == (201, [NEXT, COUNTING])
    with proxy.client(answer.json()["token"]) as guest:
        facts = guest.get("/v1/session").json()
        assert (facts["guest"], facts["endpoints"]) == (True, [NEXT, COUNTING])
        renewed = guest.post("/v1/sessions/renew", json={}).json()
    with proxy.client(renewed["token"]) as guest:
        assert guest.get("/v1/session").json()["endpoints"] == [NEXT, COUNTING]


@pytest.mark.parametrize("tenant", ["both", "free"])
def test_the_tier_without_a_proof_takes_guests_without_one(proxy: Stack, tenant: str) -> None:
    assert without_proof(proxy, tenant).json()["endpoints"] == [NEXT]


def test_without_tiers_guests_have_the_plan_of_guests(proxy: Stack) -> None:
    assert without_proof(proxy, "open").json()["endpoints"] == [COUNTING]


def test_a_guest_without_the_proof_that_every_tier_wants_is_refused(proxy: Stack) -> None:
    assert "of the kind pow" in assert_refused_with(without_proof(proxy, "work"), 401, "proof_required")["detail"]


@pytest.mark.parametrize(
    ("tenant", "kind", "says"),
    [
        ("work", "turnstile", "the kind pow"),
        ("both", "none", "the kind pow"),
        ("free", "pow", "send none"),
        ("free", "none", "send none"),
        ("open", "pow", "send none"),
    ],
)
def test_a_proof_of_a_kind_that_no_tier_takes_is_refused(proxy: Stack, tenant: str, kind: str, says: str) -> None:
    value = encode(solve(challenge(proxy)))
    assert says in assert_refused_with(give(proxy, value, tenant, kind), 401, "proof_invalid")["detail"]


# --- challenges


def test_a_challenge_names_its_tenant_its_page_and_its_end(proxy: Stack) -> None:
    answer = ask(proxy, "GET", CHALLENGE, params={"tenant": "work"})
    assert answer.headers["cache-control"] == "no-store" and answer.headers["access-control-allow-origin"] == PAGE
    parameters = answer.json()["parameters"]
    assert parameters["data"] == {"tenant": "work", "origin": PAGE}
    assert parameters["expiresAt"] == proxy.clock.now() + EXPIRY_SECONDS


def test_a_page_at_the_address_of_the_proxy_gets_one_without_naming_its_origin(proxy: Stack) -> None:
    given = solve(challenge(proxy, origin=""))
    assert give(proxy, encode(given), origin="https://ai.acme.example").status_code == 201


def test_a_page_at_another_address_of_the_proxy_gets_one_for_it(proxy: Stack) -> None:
    def asked_at(host: str) -> Any:
        headers = {"host": host, "x-forwarded-for": next(ADDRESSES)}
        url = f"{proxy.url}{CHALLENGE}"
        return httpx.get(url, params={"tenant": "work"}, headers=headers, trust_env=False, timeout=60).json()

    given = asked_at(urlsplit(PAGE).netloc)
    assert give(proxy, encode(solve(given)), origin=PAGE).status_code == 201
    assert asked_at("proxy.internal:8787")["parameters"]["data"]["origin"] == "https://ai.acme.example"


def test_the_solution_is_below_the_difficulty(proxy: Stack) -> None:
    solutions = [solve(challenge(proxy))["solution"]["counter"] for _ in range(20)]
    assert max(solutions) < POW["difficulty"] and len(set(solutions)) > 1


def test_no_challenge_where_no_work_is_wanted(proxy: Stack) -> None:
    for tenant in ("free", "open"):
        assert_refused_with(ask(proxy, "GET", CHALLENGE, params={"tenant": tenant}), 404, "not_found")
    assert_refused_with(ask(proxy, "GET", CHALLENGE, params={"tenant": "nowhere"}), 403, "origin_not_allowed")
    assert_refused_with(ask(proxy, "GET", CHALLENGE, origin="https://evil.example"), 403, "origin_not_allowed")
    assert_refused_with(ask(proxy, "GET", CHALLENGE, params={"difficulty": 1}), 400, "bad_request")


def test_challenges_and_guests_of_an_address_are_limited(proxy: Stack) -> None:
    address = next(ADDRESSES)
    given = [ask(proxy, "GET", CHALLENGE, address, params={"tenant": "rated"}) for _ in range(3)]
    assert [answer.status_code for answer in given] == [200, 200, 429]
    # What is wrong counts too, so that proofs cannot be tried out. What has no proof at all costs nothing.
    assert ask(proxy, "POST", GUEST, address, json={"tenant": "rated"}).status_code == 401
    assert [give(proxy, "wrong", "rated", address=address).status_code for _ in range(2)] == [401, 401]
    assert_refused_with(
        give(proxy, encode(solve(given[0].json())), "rated", address=address), 429, "rate_limited", "ip"
    )
    assert give(proxy, encode(solve(given[0].json())), "rated").status_code == 201


def test_a_flood_of_challenges_is_stopped(proxy: Stack) -> None:
    address = next(ADDRESSES)
    given = [ask(proxy, "GET", CHALLENGE, address, params={"tenant": "work"}).status_code for _ in range(61)]
    assert given == [200] * 60 + [429]


# --- wrong proofs


def key_of(payload: dict[str, Any], counter: int) -> str:
    parameters = altcha.ChallengeParameters.from_dict(payload["challenge"]["parameters"])
    password = bytes.fromhex(parameters.nonce) + counter.to_bytes(4, "big")
    return altcha.derive_key_pbkdf2(parameters, bytes.fromhex(parameters.salt), password).hex()


def with_parameters(payload: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The same with a challenge that was changed after it was signed."""
    given = payload["challenge"]
    return {**payload, "challenge": {**given, "parameters": {**given["parameters"], **changes}}}


def with_solution(payload: dict[str, Any], counter: int, key: str) -> dict[str, Any]:
    return {**payload, "solution": {"counter": counter, "derivedKey": key}}


def later(payload: dict[str, Any]) -> dict[str, Any]:
    return with_parameters(payload, expiresAt=payload["challenge"]["parameters"]["expiresAt"] + 1000)


def easier(payload: dict[str, Any]) -> dict[str, Any]:
    key = key_of(payload, 1000)
    return with_solution(with_parameters(payload, keyPrefix=key[:32]), 1000, key)


def guess_number(payload: dict[str, Any]) -> dict[str, Any]:
    return with_solution(payload, 0, payload["challenge"]["parameters"]["keyPrefix"] + "0" * 32)


def leave_unsolved(payload: dict[str, Any]) -> dict[str, Any]:
    return with_solution(payload, 1000, key_of(payload, 1000))


def count_wrongly(payload: dict[str, Any]) -> dict[str, Any]:
    return with_solution(payload, 1000, payload["solution"]["derivedKey"])


def change_signature(payload: dict[str, Any]) -> dict[str, Any]:
    return {**payload, "challenge": {**payload["challenge"], "signature": "0" * 64}}


#: What is done to a right proof, and what its refusal says.
CHANGES: dict[Callable[[dict[str, Any]], dict[str, Any]], str] = {
    later: "or was changed",
    easier: "or was changed",
    change_signature: "or was changed",
    guess_number: "solution is wrong",
    leave_unsolved: "solution is wrong",
    count_wrongly: "solution is wrong",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_wrong_solution_is_refused_and_the_right_one_still_counts(
    proxy: Stack, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    right = solve(challenge(proxy))
    assert CHANGES[change] in assert_refused_with(give(proxy, encode(change(right))), 401, "proof_invalid")["detail"]
    assert give(proxy, encode(right)).status_code == 201


def test_a_proof_holds_for_its_own_tenant_and_page(proxy: Stack) -> None:
    for given in (challenge(proxy, "both"), challenge(proxy, origin=OTHER_PAGE)):
        right = solve(given)
        body = assert_refused_with(give(proxy, encode(right)), 401, "proof_invalid")
        assert "another tenant or page" in body["detail"]
        claimed = with_parameters(right, data={"tenant": "work", "origin": PAGE})
        assert "or was changed" in assert_refused_with(give(proxy, encode(claimed)), 401, "proof_invalid")["detail"]


def test_a_challenge_expires(proxy: Stack) -> None:
    first, second = (encode(solve(challenge(proxy))) for _ in range(2))
    proxy.clock.advance(EXPIRY_SECONDS - 1)
    assert give(proxy, first).status_code == 201
    proxy.clock.advance(1)
    assert "expired" in assert_refused_with(give(proxy, second), 401, "proof_invalid")["detail"]


def test_a_proof_counts_once_however_it_is_written(proxy: Stack) -> None:
    right = solve(challenge(proxy))
    values = [encode(right), base64.b64encode(json.dumps({**right, "more": 1}, indent=1).encode()).decode()]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda value: give(proxy, value), values * 4))
    assert sorted(answer.status_code for answer in answers) == [201] + [401] * 7
    used = next(answer for answer in answers if answer.status_code == 401)
    assert "used before" in assert_refused_with(used, 401, "proof_invalid")["detail"]


PARAMETERS = {"nonce": "0" * 32, "salt": "0" * 32, "keyPrefix": "0" * 32, "expiresAt": 2**40}
BOUND = {**PARAMETERS, "data": {"tenant": "work", "origin": PAGE}}
SOLUTION = {"counter": 1, "derivedKey": "0" * 64}
#: Each would have its form but for one thing.
MALFORMED: dict[str, Any] = {
    "nothing": {},
    "a list": [],
    "a number": 7,
    "of version 1": {"algorithm": "SHA-256", "challenge": "0" * 64, "number": 1, "salt": "a", "signature": "0" * 64},
    "no signature": {"challenge": {"parameters": BOUND}, "solution": SOLUTION},
    "no solution": {"challenge": {"parameters": BOUND, "signature": "0" * 64}},
    "a float": {
        "challenge": {"parameters": {**BOUND, "expiresAt": 1e300}, "signature": "0" * 64},
        "solution": SOLUTION,
    },
    "odd digits": {
        "challenge": {"parameters": {**BOUND, "nonce": "0" * 31}, "signature": "0" * 64},
        "solution": SOLUTION,
    },
    "no digits": {
        "challenge": {"parameters": {**BOUND, "salt": "z" * 32}, "signature": "0" * 64},
        "solution": SOLUTION,
    },
    "a counter below": {
        "challenge": {"parameters": BOUND, "signature": "0" * 64},
        "solution": {**SOLUTION, "counter": -1},
    },
    "a counter above": {
        "challenge": {"parameters": BOUND, "signature": "0" * 64},
        "solution": {**SOLUTION, "counter": 2**32},
    },
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_proof_in_a_form_that_no_widget_gives_is_refused(proxy: Stack, case: str) -> None:
    body = assert_refused_with(give(proxy, encode(MALFORMED[case])), 401, "proof_invalid")
    assert "ALTCHA widget" in body["detail"]


@pytest.mark.parametrize("value", ["%", "wörd", "e30", base64.b64encode(b"[" * 3000).decode(), "\x00"])
def test_a_proof_that_is_not_json_in_base64_is_refused(proxy: Stack, value: str) -> None:
    assert "ALTCHA widget" in assert_refused_with(give(proxy, value), 401, "proof_invalid")["detail"]


BAD_FORMS: dict[str, Any] = {
    "proof: ": "pow",
    "proof.kind: ": {"kind": "", "value": "x"},
    "proof.kind: Field": {"value": "x"},
    "proof.kind: String": {"kind": "x" * 41, "value": "x"},
    "proof.value: ": {"kind": "pow", "value": ""},
    "proof.value: String": {"kind": "pow", "value": "x" * 16_385},
    "proof.value: Input": {"kind": "pow", "value": 7},
    "proof.more: ": {"kind": "pow", "value": "x", "more": 1},
}


@pytest.mark.parametrize("problem", BAD_FORMS)
def test_a_bad_form_is_refused(proxy: Stack, problem: str) -> None:
    answer = ask(proxy, "POST", GUEST, json={"tenant": "work", "proof": BAD_FORMS[problem]})
    assert assert_refused_with(answer, 400, "bad_request")["detail"].startswith(problem)


def test_a_refusal_never_quotes_the_proof(proxy: Stack) -> None:
    right = solve(challenge(proxy))
    for payload in (count_wrongly(right), change_signature(right), {"challenge": right["challenge"]}):
        answer = give(proxy, encode(payload))
        for secret in (encode(payload), right["solution"]["derivedKey"], right["challenge"]["signature"]):
            assert secret not in answer.text


# --- secrets


def test_a_challenge_outlives_a_rotation_until_its_own_secret_is_dropped() -> None:
    old, new = (Secret(name * 32) for name in ("o", "n"))
    sessions, clock = Sessions([old], MovableClock()), MovableClock()
    work = ProofOfWork(sessions, clock)
    value = encode(solve(work.make_challenge("work", PAGE, 10)))
    sessions.replace_secrets([new, old])
    assert work.verify("work", PAGE, value)
    sessions.replace_secrets([new])
    with pytest.raises(ProofInvalid, match="not one of this proxy's"):
        work.verify("work", PAGE, value)


# --- several processes


@pytest.mark.tools
def test_a_proof_counts_once_in_two_processes(sandbox: SandboxControl, tmp_path: Path, redis: Redis) -> None:
    config = tmp_path / "plans.yaml"
    named = [{"id": "work", "plan": "other", **tenants()["work"]}]
    config.write_text(yaml.safe_dump({"plans": PLANS, "tenants": named}))
    own = {"PROXY_CONFIG": str(config), "PROXY_REDIS_URL": redis.url, "PROXY_SESSION_SECRETS": SECRET}
    environ = {**sandbox_environ(sandbox.url), **own, "PROXY_TRUSTED_PROXIES": "127.0.0.0/8"}
    with ExitStack() as running:
        processes = []
        for name in ("one", "other"):
            (tmp_path / name).mkdir()
            processes.append(Server(running.enter_context(serving(tmp_path / name, environ))[0]))
        for _ in range(3):
            value = encode(solve(challenge(processes[0])))
            with ThreadPoolExecutor(8) as pool:
                answers = list(pool.map(give, processes * 4, [value] * 8))
            assert sorted(answer.status_code for answer in answers) == [201] + [401] * 7


@pytest.mark.tools
def test_a_guest_is_refused_while_it_is_unknown_whether_its_proof_was_used(
    sandbox: SandboxControl, tmp_path: Path
) -> None:
    with running_redis() as redis:
        environ = {"PROXY_REDIS_URL": redis.url, "PROXY_RATE_LIMIT_ON_ERROR": "open"}
        with proving(sandbox, tmp_path, environ=environ) as proxy:
            value = encode(solve(challenge(proxy)))
            redis.stop()
            assert_refused_with(give(proxy, value), 503, "store_unavailable")
            redis.start()
            assert give(proxy, value).status_code == 201
