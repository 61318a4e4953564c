"""Proofs that Turnstile, hCaptcha or reCAPTCHA verifies; here the sandbox stands in for them, or a broken service."""

from __future__ import annotations

import asyncio
import base64
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from proxy.auth import siteverify
from proxy.sandbox import captchas
from tests.support.limited import COUNTING, NEXT, assert_refused_with, limited_proxy, plan
from tests.support.sandbox import SandboxControl
from tests.support.servers import running
from tests.support.stack import Stack
from tests.support.waiting import wait_until

HOST = "app.acme.example"
PAGE = f"https://{HOST}"
GUEST = "/v1/sessions/guest"
PLANS = {"taste": plan(), "crumb": plan(endpoints=[NEXT])}
ADDRESSES = (f"198.51.{number // 250}.{number % 250 + 1}" for number in itertools.count())
Answer = Callable[[], Any]


def tenants(folder: Path) -> dict[str, dict[str, Any]]:
    """A tenant for each kind, and some whose tier asks for more or has no right secret."""
    (folder / "secret").write_text(f"{captchas.SECRET}\n")
    (folder / "fal-key").write_text("sandbox-key-id:sandbox-key-secret")
    (folder / "huge").write_text("x" * 2000)
    right = {"secret_env": "CAPTCHA_SECRET"}
    tiers: dict[str, dict[str, Any]] = {
        **{kind: {"proof": kind, **right} for kind in captchas.KINDS},
        "file": {"proof": "turnstile", "secret_file": str(folder / "secret")},
        "action": {"proof": "turnstile", **right, "action": "guest"},
        "score": {"proof": "recaptcha", **right, "min_score": 0.5},
        "wrong": {"proof": "turnstile", "secret_env": "WRONG_SECRET"},
        "unset": {"proof": "turnstile", "secret_env": "UNSET_SECRET"},
        "missing": {"proof": "turnstile", "secret_file": str(folder / "missing")},
        "huge": {"proof": "turnstile", "secret_file": str(folder / "huge")},
        "own": {"proof": "turnstile", "secret_file": str(folder / "fal-key")},
    }
    return {
        name: {
            "plan": "crumb",
            "allowed_origins": [PAGE],
            "guests": {"enabled": True, "per_address": None, "tiers": [{**tier, "plan": "taste"}]},
        }
        for name, tier in tiers.items()
    }


class Service:
    """A service that answers as a test wants."""

    def __init__(self) -> None:
        self.answer: Answer = lambda: JSONResponse({"success": True, "hostname": HOST})

    async def reply(self, _: Request) -> Response:
        found = self.answer()
        return await found if asyncio.iscoroutine(found) else found


@pytest.fixture(scope="module")
def service() -> Service:
    return Service()


@pytest.fixture(scope="module")
def limited(
    shared_sandbox: SandboxControl, service: Service, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """hCaptcha is the service of the tests, the others are the sandbox."""
    folder = tmp_path_factory.mktemp("captchas")
    listed = tenants(folder)
    plans = {**PLANS, **dict.fromkeys(listed, PLANS["crumb"])}
    url = f"{shared_sandbox.url}/_sandbox/siteverify"
    elsewhere = Route("/right", lambda _: right())
    broken = Starlette(routes=[Route("/siteverify", service.reply, methods=["POST"]), elsewhere])
    trusting = {"proxy_headers": True, "forwarded_allow_ips": ["127.0.0.0/8"]}
    with running(broken) as other:
        environ = {
            "CAPTCHA_SECRET": captchas.SECRET,
            "WRONG_SECRET": "not it",
            "PROXY_TURNSTILE_URL": f"{url}/turnstile",
            "PROXY_RECAPTCHA_URL": f"{url}/recaptcha",
            "PROXY_HCAPTCHA_URL": f"{other}/siteverify",
        }
        with limited_proxy(shared_sandbox, folder, plans, tenants=listed, environ=environ, server=trusting) as stack:
            yield stack


@pytest.fixture
def proxy(limited: Stack, sandbox: SandboxControl) -> Stack:
    return limited


def token(proxy: Stack, kind: str, **more: Any) -> str:
    """What the widget of a service gives a page."""
    wanted = {"kind": kind, "hostname": HOST, **more}
    given: str = httpx.post(f"{proxy.sandbox.url}/_sandbox/proofs", json=wanted, trust_env=False, timeout=60).json()[
        "token"
    ]
    return given


def give(proxy: Stack, tenant: str, kind: str, value: str) -> httpx.Response:
    form = {"tenant": tenant, "proof": {"kind": kind, "value": value}}
    headers = {"origin": PAGE, "x-forwarded-for": next(ADDRESSES)}
    return httpx.post(f"{proxy.url}{GUEST}", json=form, headers=headers, trust_env=False, timeout=60)


@pytest.mark.parametrize(("tenant", "kind"), [("turnstile",) * 2, ("recaptcha",) * 2, ("file", "turnstile")])
def test_a_token_gives_the_plan_of_its_tier_and_counts_once(proxy: Stack, tenant: str, kind: str) -> None:
    value = token(proxy, kind)
    answer = give(proxy, tenant, kind, value)
    assert (answer.status_code, answer.json()["endpoints"]) == (201, [NEXT, COUNTING])
    assert_refused_with(give(proxy, tenant, kind, value), 401, "proof_invalid")


def test_a_token_counts_once_also_for_a_service_that_forgets(proxy: Stack, service: Service) -> None:
    service.answer = Service().answer
    assert give(proxy, "hcaptcha", "hcaptcha", "one").status_code == 201
    assert (
        "used before" in assert_refused_with(give(proxy, "hcaptcha", "hcaptcha", "one"), 401, "proof_invalid")["detail"]
    )


WRONG: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "of another host": ("turnstile", "turnstile", {"hostname": "evil.example"}, "another host"),
    "without a host": ("turnstile", "turnstile", {"hostname": None}, "another host"),
    "of another action": ("action", "turnstile", {"action": "login"}, "another action"),
    "without an action": ("action", "turnstile", {}, "another action"),
    "with a low score": ("score", "recaptcha", {"score": 0.4}, "score is too low"),
    "without a score": ("score", "recaptcha", {}, "score is too low"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_token_that_is_not_of_this_page_is_refused(proxy: Stack, case: str) -> None:
    tenant, kind, facts, says = WRONG[case]
    body = assert_refused_with(give(proxy, tenant, kind, token(proxy, kind, **facts)), 401, "proof_invalid")
    assert says in body["detail"]


def test_a_token_with_the_right_action_or_score_counts(proxy: Stack) -> None:
    assert give(proxy, "action", "turnstile", token(proxy, "turnstile", action="guest")).status_code == 201
    assert give(proxy, "score", "recaptcha", token(proxy, "recaptcha", score=0.5)).status_code == 201


def test_a_token_that_the_service_did_not_give_is_refused(proxy: Stack) -> None:
    body = assert_refused_with(give(proxy, "turnstile", "turnstile", "made up"), 401, "proof_invalid")
    assert "(invalid-input-response)" in body["detail"] and "made up" not in body["detail"]
    other = token(proxy, "recaptcha")
    assert_refused_with(give(proxy, "turnstile", "turnstile", other), 401, "proof_invalid")


@pytest.mark.parametrize("tenant", ["wrong", "unset", "missing", "huge", "own"])
def test_without_the_right_secret_no_guest_is_let_in(proxy: Stack, tenant: str, caplog: Any) -> None:
    value = token(proxy, "turnstile")
    body = assert_refused_with(give(proxy, tenant, "turnstile", value), 503, "proof_unavailable")
    assert "turnstile" in body["detail"]
    (record,) = [record for record in caplog.records if record.message == "proof not verified"]
    says = {"wrong": "the service says invalid-input-secret", "missing": "No such file", "own": "the proxy's own"}
    assert says.get(tenant, "there is no secret in") in record.log_fields["problem"]
    assert "sandbox-key-secret" not in str(record.log_fields) and value not in str(record.log_fields)
    # The token is not lost.
    assert give(proxy, "turnstile", "turnstile", value).status_code == 201


def right(**more: Any) -> Response:
    return JSONResponse({"success": True, "hostname": HOST, **more})


async def late() -> Response:
    await asyncio.sleep(siteverify.ANSWER_SECONDS + 5)
    return right()


OUTAGES: dict[str, Answer] = {
    "an error": lambda: JSONResponse({"success": True, "hostname": HOST}, 500),
    "a redirect": lambda: RedirectResponse("/right", 303),
    "no JSON": lambda: Response("<html>"),
    "a list": lambda: JSONResponse([{"success": True}]),
    "too much": lambda: right(more="x" * 70_000),
    "its own failure": lambda: JSONResponse({"success": False, "error-codes": ["internal-error"]}),
    "a wrong secret": lambda: right(**{"error-codes": ["sitekey-secret-mismatch"]}),
    "nothing in time": late,
}


@pytest.mark.parametrize("case", OUTAGES)
def test_while_the_service_gives_no_valid_answer_no_guest_is_let_in(proxy: Stack, service: Service, case: str) -> None:
    service.answer = OUTAGES[case]
    body = assert_refused_with(give(proxy, "hcaptcha", "hcaptcha", case), 503, "proof_unavailable")
    assert "hcaptcha gives no valid answer" in body["detail"] and body["retry_after"] == 5
    service.answer = right
    assert give(proxy, "hcaptcha", "hcaptcha", case).status_code == 201


NO_PLAIN_YES: dict[str, Any] = {
    "no": {"success": False, "hostname": HOST},
    "a text": {"success": "true", "hostname": HOST},
    "a number": {"success": 1, "hostname": HOST},
    "nothing": {},
    "strange codes": {"success": False, "error-codes": ["<script>", 7, "x" * 99]},
    "no list": {"success": False, "error-codes": "no"},
}


@pytest.mark.parametrize("case", NO_PLAIN_YES)
def test_only_a_plain_yes_counts(proxy: Stack, service: Service, case: str) -> None:
    service.answer = lambda: JSONResponse(NO_PLAIN_YES[case])
    body = assert_refused_with(
        give(proxy, "hcaptcha", "hcaptcha", base64.b64encode(case.encode()).decode()), 401, "proof_invalid"
    )
    assert "(without a reason)" in body["detail"]


def test_a_slow_service_gets_a_bounded_number_of_questions_and_holds_up_no_other(
    proxy: Stack, service: Service
) -> None:
    asked, released = itertools.count(1), threading.Event()
    seen: list[int] = []

    async def wait() -> Response:
        seen.append(next(asked))
        await asyncio.to_thread(released.wait, 30)
        return JSONResponse({"success": False})

    service.answer = wait
    most = siteverify.MOST_QUESTIONS
    with ThreadPoolExecutor(most + 5) as callers:
        waiting = [callers.submit(give, proxy, "hcaptcha", "hcaptcha", f"slow-{number}") for number in range(most + 5)]
        try:
            wait_until(lambda: len(seen) >= most, "the service is not asked")
            assert give(proxy, "turnstile", "turnstile", token(proxy, "turnstile")).status_code == 201
            # On a busy machine the first may have been given up by now, which makes room for others.
            assert len(seen) <= most + sum(answer.done() for answer in waiting)
        finally:
            released.set()
    assert {answer.result().status_code for answer in waiting} <= {401, 503}


def test_a_service_that_is_gone_lets_no_guest_in(sandbox: SandboxControl, tmp_path: Path) -> None:
    listed = {"turnstile": tenants(tmp_path)["turnstile"]}
    environ = {"CAPTCHA_SECRET": captchas.SECRET, "PROXY_TURNSTILE_URL": "http://127.0.0.1:9"}
    plans = {**PLANS, "turnstile": PLANS["crumb"]}
    with limited_proxy(sandbox, tmp_path, plans, tenants=listed, environ=environ) as proxy:
        assert_refused_with(give(proxy, "turnstile", "turnstile", "x"), 503, "proof_unavailable")
