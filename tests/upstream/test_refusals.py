"""fal's refusals: what each means to the caller and to the operator, and that none costs anything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from proxy.upstream.refusals import Reason, reason_of
from tests.support.limited import NEXT, NOTHING, Client, account, asking, assert_refused_with, limited_proxy
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack

PLANS = {
    "plenty": {
        "endpoints": [NEXT],
        "concurrency": {"subject": 9, "tenant": 9},
        "uploads": {"max_bytes": 1000},
        "quotas": [
            {"per": "tenant", "unit": unit, "limit": 10_000, "window": "day"} for unit in ("requests", "upload_bytes")
        ],
    }
}
#: The sandbox's refusals, with the status, the code and the reason that they have here.
REFUSALS = {
    "wrong_key": (500, "upstream_rejected_key", "wrong_key"),
    "no_permission": (500, "upstream_rejected_key", "no_permission"),
    "account_locked": (503, "upstream_account_locked", "account_locked"),
    "balance_used_up": (503, "upstream_account_locked", "balance_used_up"),
    "top_up": (503, "upstream_account_locked", "balance_used_up"),
    "payment_required": (503, "upstream_account_locked", "balance_used_up"),
    "concurrency_limit": (503, "upstream_busy", "concurrency_limit"),
    "rate_limit": (503, "upstream_busy", "rate_limit"),
    "endpoint_refused": (502, "upstream_refused_endpoint", "endpoint_refused"),
    "endpoint_unknown": (502, "upstream_refused_endpoint", "endpoint_unknown"),
}
CALLS: dict[str, tuple[str, Any]] = {
    "run": (f"run/{NEXT}", asking("?")),
    "stream": (f"run/{NEXT}/stream", asking("?")),
    "submit": (f"queue/{NEXT}", asking("?")),
    "rest": ("rest/storage/upload/initiate", {"content_type": "image/png", "file_name": "a.png"}),
}


@pytest.fixture
def proxy(sandbox: SandboxControl, tmp_path: Path) -> Iterator[Stack]:
    with limited_proxy(sandbox, tmp_path, PLANS) as stack:
        yield stack


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_has_its_own_code_and_costs_nothing(
    proxy: Stack, sandbox: SandboxControl, tmp_path: Path, name: str
) -> None:
    status, code, reason = REFUSALS[name]
    scope = None if code == "upstream_rejected_key" else "upstream"
    with Client(proxy, proxy.token(tenant="plenty")) as alice:
        for operation, (path, body) in CALLS.items():
            sandbox.fault("refuse", reason=name, on={"operation": operation})
            answer = alice.call("POST", path, body)
            found = assert_refused_with(answer, status, code, scope)
            assert (status == 503) == ("retry_after" in found), operation
            assert "balance" not in answer.text.lower() and "sandbox" not in answer.text
            assert alice.slots() == (0, 0), operation
            assert account(tmp_path, "plenty", "requests") == NOTHING, operation
            assert account(tmp_path, "plenty", "upload_bytes") == NOTHING, operation
            sandbox.clear_faults()
            proxy.clock.advance(600)
        assert reason in alice.http.get("/readyz").json()["upstream"]["last"]
        assert f'fal_proxy_upstream_refusals_total{{reason="{reason}"}} 4.0' in alice.http.get("/metrics").text
        # The next call passes.
        assert alice.run().status_code == 200


@pytest.mark.parametrize("name", sorted(set(REFUSALS) - {"endpoint_unknown"}))
def test_a_poll_or_result_that_fal_refuses_has_its_own_code(proxy: Stack, sandbox: SandboxControl, name: str) -> None:
    status, code, _ = REFUSALS[name]
    with Client(proxy, proxy.token(tenant="plenty")) as alice:
        job = alice.submitted("[[pace hold=IN_QUEUE]] ?")
        sandbox.fault("refuse", reason=name)
        for answer in (alice.status(job), alice.result(job), alice.cancel(job)):
            assert_refused_with(answer, status, code, None if status == 500 else "upstream")
        sandbox.clear_faults()
        assert alice.status(job).status_code == 202


def test_how_long_fal_says_to_wait_is_passed_on(proxy: Stack, sandbox: SandboxControl) -> None:
    with Client(proxy, proxy.token(tenant="plenty")) as alice:
        for given, passed_on in (("7", 7), ("3600", 3600), ("3601", 1), ("soon", 1), ("9" * 5000, 1), ("0", 1)):
            sandbox.clear_faults()
            sandbox.fault("refuse", reason="rate_limit", headers={"retry-after": given})
            assert assert_refused_with(alice.run(), 503, "upstream_busy", "upstream")["retry_after"] == passed_on


def test_the_models_own_words_pass_on(proxy: Stack, sandbox: SandboxControl) -> None:
    """A model may answer 404 itself; only fal's own words about an application concern the endpoint."""
    with Client(proxy, proxy.token(tenant="plenty")) as alice:
        sandbox.fault("status", status=404, body={"detail": "No face found, application of the filter not found"})
        answer = alice.run()
        assert answer.status_code == 404 and answer.json()["detail"].startswith("No face")


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (
            {"fault": "status", "status": 403, "text": "<html>Forbidden", "content_type": "text/html"},
            "upstream_refused_endpoint",
        ),
        (
            {"fault": "status", "status": 401, "text": "\xff", "content_type": "application/json"},
            "upstream_rejected_key",
        ),
        ({"fault": "status", "status": 402, "body": ["?"]}, "upstream_account_locked"),
        ({"fault": "status", "status": 403, "body": {"detail": "x" * 100_000}}, "upstream_refused_endpoint"),
        ({"fault": "status", "status": 404, "body": {"detail": "x" * 100_000}}, "upstream_ambiguous"),
        (
            {"fault": "status", "status": 429, "body": {"detail": None}, "headers": {"content-encoding": "gzip"}},
            "upstream_busy",
        ),
    ],
    ids=str,
)
def test_a_refusal_that_cannot_be_read(proxy: Stack, sandbox: SandboxControl, fault: dict[str, Any], code: str) -> None:
    sandbox.fault(**fault)
    with Client(proxy, proxy.token(tenant="plenty")) as alice:
        assert alice.run().json()["error_type"] == code


@pytest.mark.parametrize(
    ("status", "detail", "reason"),
    [
        (403, "User is locked. Reason: Exhausted balance", Reason.BALANCE_USED_UP),
        (403, "user is locked. reason: TOP_UP", Reason.BALANCE_USED_UP),
        (403, "User is locked. Reason: Admin lock", Reason.ACCOUNT_LOCKED),
        (403, "User is locked.", Reason.ACCOUNT_LOCKED),
        # Words of a caller that fal quotes in its answer lock no account.
        (403, 'The prompt "User is locked. Reason: Exhausted balance" is refused', Reason.ENDPOINT_REFUSED),
        (403, "This API key is disabled", Reason.WRONG_KEY),
        (403, "Missing scope: inference", Reason.NO_PERMISSION),
        (403, "The key has no access to this endpoint", Reason.ENDPOINT_REFUSED),
        (403, [{"msg": "User is locked", "type": "x"}], Reason.ENDPOINT_REFUSED),
        (404, 'Application "x" not found', Reason.ENDPOINT_UNKNOWN),
        (404, [{"msg": 'Application "x" not found'}], None),
        (422, "User is locked", None),
        (429, "Too many concurrent requests", Reason.CONCURRENCY_LIMIT),
        (429, "Slow down", Reason.RATE_LIMIT),
    ],
)
def test_the_reason_is_read_from_fals_words(status: int, detail: object, reason: Reason | None) -> None:
    assert reason_of(status, orjson.dumps({"detail": detail})) is reason
