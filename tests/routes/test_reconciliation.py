"""Reconciliation: the ledger compared with fal's own record, by the admin route and the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.sandbox.app import SANDBOX_ADMIN_KEY, SANDBOX_KEY
from tests.server.commands import Commands
from tests.support.limited import ADMIN_TOKEN, COUNTING, NEXT, Client, asking, assert_refused_with, limited_proxy, plan
from tests.support.sandbox import SandboxControl, running_sandbox
from tests.support.stack import Stack

PATH = "/v1/admin/reconciliation"
#: The sandbox charges a cent per compute second for both.
PRICES = [{"id": NEXT, "price_per_compute_second": 0.01}, {"id": COUNTING, "price_per_compute_second": 0.03}]
PACE = "[[pace run_seconds=0.25]] ?"


@pytest.fixture
def fal() -> Iterator[SandboxControl]:
    """A fal for this test only: calls of other tests would count as drift."""
    with running_sandbox() as control:
        yield control


@pytest.fixture
def proxy(fal: SandboxControl, tmp_path: Path) -> Iterator[Stack]:
    with limited_proxy(fal, tmp_path, {"acme": plan()}, endpoints=PRICES) as stack:
        yield stack


def ask(stack: Stack, token: str = ADMIN_TOKEN, **query: str) -> httpx.Response:
    with stack.client(token) as client:
        return client.get(PATH, params=query)


def day_of(stack: Stack, days: int) -> str:
    return str((datetime.fromtimestamp(stack.clock.now(), UTC) + timedelta(days=days)).date())


def around(stack: Stack) -> dict[str, str]:
    """Yesterday to tomorrow: a call at midnight can be on another day at fal."""
    return {"from": day_of(stack, -1), "to": day_of(stack, 1)}


def read(stack: Stack) -> dict[str, Any]:
    answer = ask(stack, **around(stack))
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def drift_of(report: dict[str, Any], endpoint: str) -> tuple[int, Decimal]:
    """How much more the ledger has than fal for an endpoint, over all days: calls and US dollars."""
    found = [row["difference"] for row in report["rows"] if row["endpoint"] == endpoint]
    return sum(one["calls"] for one in found), sum((Decimal(one["usd"]) for one in found), Decimal(0))


def call(stack: Stack) -> None:
    """A run and a queued job of each of two users."""
    for subject in ("alice", "bob"):
        with Client(stack, stack.token(subject)) as client:
            assert client.run(PACE).is_success
            job = client.submitted(PACE)
            stack.sandbox.move_job(job, "finish")
            assert client.status(job).json()["status"] == "COMPLETED" and client.result(job).is_success
            # A call that fal refuses is free in both records.
            assert client.run("[[fault status=500]] ?").status_code == 500


def test_the_ledger_and_fal_agree(proxy: Stack) -> None:
    assert read(proxy)["rows"] == []
    call(proxy)
    report = read(proxy)
    assert drift_of(report, NEXT)[0] == 0 and report["total"]["ours"]["calls"] == report["total"]["fal"]["calls"] == 4
    assert {"from": report["from"], "to": report["to"]} == around(proxy)
    assert report["total"]["difference"]["calls"] == 0
    (used,) = report["total"]["fal"]["quantities"]
    assert used["unit"] == "compute second"
    # The run time of a job that the test ends has more digits than the header of its answer.
    assert abs(Decimal(used["quantity"]) - Decimal(report["total"]["ours"]["compute_seconds"])) < Decimal("0.001")
    assert abs(drift_of(report, NEXT)[1]) < Decimal("0.0001")


def test_a_call_that_bypasses_the_proxy_is_reported(proxy: Stack) -> None:
    with Client(proxy, proxy.token()) as client:
        assert client.run(PACE).is_success
    headers = {"authorization": f"Key {SANDBOX_KEY}"}
    beside = httpx.post(
        f"{proxy.sandbox.url}/run/{NEXT}", json=asking(PACE), headers=headers, trust_env=False, timeout=60
    )
    assert beside.is_success
    assert drift_of(read(proxy), NEXT) == (-1, Decimal("-0.0025"))
    assert read(proxy)["total"]["difference"] == {"calls": -1, "usd": "-0.0025"}


def test_another_price_is_reported(proxy: Stack) -> None:
    with Client(proxy, proxy.token()) as client:
        assert client.run(PACE, endpoint=COUNTING).is_success
    assert drift_of(read(proxy), COUNTING) == (0, Decimal("0.005"))


def test_reconciliation_changes_nothing(proxy: Stack) -> None:
    call(proxy)
    with proxy.client(ADMIN_TOKEN) as operator:
        before = operator.get("/v1/admin/usage", params={"group_by": "day,endpoint"}).json()
        first = read(proxy)
        assert read(proxy) == first
        assert operator.get("/v1/admin/usage", params={"group_by": "day,endpoint"}).json() == before


@pytest.mark.parametrize(
    "query",
    [
        {"from": "2026-01-01", "to": "2026-04-03"},
        {"from": "0001-01-01", "to": "9999-12-31"},
        {"from": "2026-02-02", "to": "2026-02-01"},
        {"from": "yesterday"},
        {"to": "2026-02-30"},
        {"tenant": "acme"},
    ],
)
def test_an_invalid_query_is_refused(proxy: Stack, query: dict[str, str]) -> None:
    proxy.sandbox.begin()
    assert_refused_with(ask(proxy, **query), 400, "bad_request")
    assert not [one for one in proxy.sandbox.requests() if one["host"] == "api"]


@pytest.mark.parametrize(("first", "last"), [("2026-01-01", "2026-04-02"), ("9999-12-01", "9999-12-31")])
def test_the_longest_spans_of_days_are_accepted(proxy: Stack, first: str, last: str) -> None:
    assert ask(proxy, **{"from": first, "to": last}).json()["rows"] == []


def test_only_admin_tokens_may_read_it(proxy: Stack) -> None:
    for token in (proxy.tenant_key(), proxy.token()):
        assert_refused_with(ask(proxy, token), 401, "unauthenticated")


@pytest.mark.parametrize(
    ("key", "status", "code"),
    [("", 400, "bad_request"), (SANDBOX_KEY, 500, "upstream_rejected_key"), ("a:b", 500, "upstream_rejected_key")],
    ids=["none", "no admin key", "unknown"],
)
def test_without_an_admin_key_it_is_refused(
    fal: SandboxControl, tmp_path: Path, key: str, status: int, code: str
) -> None:
    environ = {"FAL_USAGE_KEY": key}
    with limited_proxy(fal, tmp_path, {"acme": plan()}, endpoints=PRICES, environ=environ) as stack:
        answer = ask(stack)
        assert "FAL_USAGE_KEY" in assert_refused_with(answer, status, code)["message"]
        assert SANDBOX_KEY not in answer.text and SANDBOX_ADMIN_KEY not in answer.text


def test_a_failure_of_fal_is_reported(proxy: Stack) -> None:
    proxy.sandbox.fault("status", status=503, on={"host": "api"})
    assert_refused_with(ask(proxy, **around(proxy)), 503, "upstream_unavailable", "upstream")
    # Calls of models are not affected.
    with Client(proxy, proxy.token()) as client:
        assert client.run().is_success


def test_the_command_line_prints_the_same(proxy: Stack, commands: Commands, tmp_path: Path) -> None:
    call(proxy)
    period = around(proxy)
    arguments = ["reconcile", "--from", period["from"], "--to", period["to"], "--url", proxy.url]
    environ = {"PROXY_ADMIN_TOKEN": ADMIN_TOKEN}
    assert json.loads(commands(*arguments, "--json", environ=environ, cwd=tmp_path).stdout) == read(proxy)
    lines = commands(*arguments, environ=environ, cwd=tmp_path).stdout.splitlines()
    assert lines[0].split()[:2] == ["day", "endpoint"] and lines[-1].split()[:5] == ["total", "total", "4", "4", "0"]
    done = commands("reconcile", "--from", "never", "--url", proxy.url, environ=environ, cwd=tmp_path)
    assert (done.code, done.stdout) == (1, "") and "from: must be a day" in done.stderr
