"""The metrics of one process say what happened, and no caller adds a label."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import prometheus_client
import pytest

from proxy.server.options import connection_limits
from proxy.telemetry.instruments import Distributions
from proxy.telemetry.loop_lag import LoopLag
from proxy.telemetry.metrics import Metrics
from tests.support.limited import COUNTING, Client, limited_proxy, per, plan
from tests.support.sandbox import SandboxControl
from tests.support.scrape import Scrape, scrape
from tests.support.stack import Stack
from tests.support.waiting import wait_until, wait_until_async

PRICE = 0.0006
PLANS = {
    "plenty": plan(),
    "tight": plan(quotas=[per("tenant", "tokens", 200)]),
    "warned": plan(quotas=[{**per("tenant", "tokens", 200), "mode": "warn"}]),
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def served(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("metrics")
    endpoints = [{"id": COUNTING, "price_per_compute_second": PRICE}]
    environ = {"PROXY_COMMIT": COMMIT, "PROXY_MAX_STREAMS": "77"}
    with limited_proxy(shared_sandbox, folder, PLANS, endpoints=endpoints, environ=environ) as stack:
        yield stack


@pytest.fixture
def stack(served: Stack, sandbox: SandboxControl) -> Stack:
    return served


def caller(stack: Stack, tenant: str = "plenty") -> Client:
    return Client(stack, stack.token(tenant=tenant))


def usage_of(stack: Stack) -> dict[str, float]:
    with caller(stack) as alice:
        total = alice.http.get("/v1/usage").json()["total"]
    return {"calls": total["calls"], "tokens": total["tokens"], "usd": total["usd"]}


def charges_in(found: Scrape) -> dict[str, float]:
    return {unit: found.value(f"fal_proxy_charged_{unit}_total") for unit in ("calls", "tokens", "usd")}


def test_charged_units_are_those_of_the_usage_report(stack: Stack) -> None:
    with caller(stack) as alice:
        assert alice.run(endpoint=COUNTING, max_tokens=64).status_code == 200
        job = alice.submitted(endpoint=COUNTING, max_tokens=64)
        wait_until(lambda: alice.status(job, COUNTING).json()["status"] == "COMPLETED")
        for _ in range(2):
            # Only the first one books.
            assert alice.result(job, COUNTING).status_code == 200
    wait_until(lambda: scrape(stack.url).value("fal_proxy_charged_calls_total") == 2)
    assert charges_in(scrape(stack.url)) == pytest.approx(usage_of(stack))
    assert charges_in(scrape(stack.url))["tokens"] > 0 < charges_in(scrape(stack.url))["usd"]


def test_a_quota_that_is_used_up_is_counted_by_its_unit(stack: Stack) -> None:
    before = scrape(stack.url)
    with caller(stack, "tight") as alice:
        assert alice.run(max_tokens=201).json()["error_type"] == "quota_exceeded"
    after = scrape(stack.url)
    for unit in ("requests", "tokens", "compute_seconds", "usd", "upload_bytes"):
        name = "fal_proxy_quota_refusals_total"
        assert after.value(name, unit=unit) - before.value(name, unit=unit) == (unit == "tokens"), unit


def test_each_call_above_a_quota_that_warns_is_counted_by_its_unit(stack: Stack) -> None:
    before = scrape(stack.url)
    with caller(stack, "warned") as alice:
        assert [alice.run(max_tokens=199).status_code for _ in range(3)] == [200] * 3
    after = scrape(stack.url)
    for unit in ("requests", "tokens", "compute_seconds", "usd", "upload_bytes"):
        name = "fal_proxy_quota_warnings_total"
        assert after.value(name, unit=unit) - before.value(name, unit=unit) == 2 * (unit == "tokens"), unit


def test_each_exchange_with_fal_is_measured(stack: Stack, sandbox: SandboxControl) -> None:
    before = scrape(stack.url)
    with caller(stack) as alice:
        alice.run()
        alice.run("[[fault status=500]] ?")
        job = alice.submitted("[[pace hold=IN_PROGRESS]] ?")
        wait_until(lambda: alice.status(job).json()["status"] == "IN_PROGRESS")
    after = scrape(stack.url)

    def growth(name: str, **labels: str) -> float:
        return after.value(name, **labels) - before.value(name, **labels)

    assert growth("fal_proxy_upstream_seconds_count", operation="run", status="2xx") == 1
    assert growth("fal_proxy_upstream_seconds_count", operation="run", status="5xx") == 1
    assert growth("fal_proxy_upstream_seconds_count", operation="submit", status="2xx") == 1
    assert growth("fal_proxy_queue_seconds_count", queue="fal") == 1
    # At least a reservation and a settlement of the runs, and two of the submit.
    assert growth("fal_proxy_queue_seconds_count", queue="ledger") >= 6
    assert growth("fal_proxy_store_seconds_count", store="database", operation="write") >= 4


def test_no_exchange_without_an_answer_is_forgotten(stack: Stack, tmp_path: Path) -> None:
    environ = {"FAL_RUN_URL": "http://127.0.0.1:9"}
    with limited_proxy(stack.sandbox, tmp_path, PLANS, environ=environ) as own:
        with caller(own) as alice:
            assert alice.run().json()["error_type"] == "upstream_unavailable"
        found = scrape(own.url)
        assert found.value("fal_proxy_upstream_seconds_count", operation="run", status="none") == 1
        assert found.value("fal_proxy_upstream_refusals_total", reason="unreachable") == 1


def test_the_build_the_process_and_its_limits_are_metrics(stack: Stack) -> None:
    found = scrape(stack.url)
    (build,) = [one for one in found.samples if one.name == "fal_proxy_build_info"]
    assert build.value == 1 and build.labels["commit"] == COMMIT and build.labels["python"].startswith("3.")
    assert found.value("fal_proxy_workers") == 1
    assert found.value("fal_proxy_open_streams_limit") == 77
    assert found.value("fal_proxy_connections_limit") == connection_limits(stack.settings.server).most
    assert found.value("process_resident_memory_bytes") > 10_000_000
    assert found.value("process_open_fds") > 3


def test_the_lag_of_the_event_loop_is_measured(stack: Stack) -> None:
    wait_until(lambda: scrape(stack.url).value("fal_proxy_event_loop_lag_seconds_count") >= 1)


def test_counters_begin_at_zero_and_have_no_date(stack: Stack) -> None:
    found = scrape(stack.url)
    for name, labels in (
        ("fal_proxy_refusals_total", {"error_type": "acceptance_deferred"}),
        ("fal_proxy_refusals_total", {"error_type": "too_many_connections"}),
        ("fal_proxy_upstream_refusals_total", {"reason": "account_locked"}),
        ("fal_proxy_config_reloads_total", {"outcome": "refused"}),
        ("fal_proxy_connections_refused_total", {"limit": "process"}),
    ):
        assert [one.value for one in found.samples if (one.name, one.labels) == (name, labels)] in ([0.0], []), name
    assert not [one.name for one in found.samples if one.name.endswith("_created")]
    assert not [
        key for key, times in Counter((one.name, *one.labels.items()) for one in found.samples).items() if times > 1
    ]


def test_no_caller_adds_a_label(stack: Stack) -> None:
    def read_labels(found: Scrape) -> set[tuple[str, ...]]:
        return {(one.name, *one.labels.values()) for one in found.samples}

    with caller(stack, "plenty") as alice:
        strange = [("PURGE", "/x"), ("GET", "/v1/nothing"), ("GET", "/fal/run/a/b"), ("POST", "/fal/run/no/such")]
        for method, path in strange:
            alice.http.request(method, path)
        before = read_labels(scrape(stack.url))
        for number in range(20):
            for method, path in strange:
                alice.http.request(f"{method}{number}" if method == "PURGE" else method, f"{path}{number}")
        assert read_labels(scrape(stack.url)) == before


def test_a_malformed_status_has_a_label_of_its_own() -> None:
    metrics = Metrics()
    for status in (200, 499, 299, 777, 600):
        metrics.count_answer("/a", status, 0.1)
        metrics.count_upstream("run", status, 0.1)
    found = {
        (family.name, sample.labels["status"]): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if "status" in sample.labels and "le" not in sample.labels and not sample.name.endswith("_sum")
    }
    shown = {status: value for (name, status), value in found.items() if name == "fal_proxy_requests"}
    assert shown == {"200": 1, "499": 1, "other": 3}
    shown = {status: value for (name, status), value in found.items() if name == "fal_proxy_upstream_seconds"}
    assert shown == {"2xx": 2, "4xx": 1, "other": 2}


def test_distributions_are_those_of_prometheus_client() -> None:
    """Observations below, on and between the bounds, and above all of them."""
    bounds, ours, theirs = (0.1, 0.5, 2.0), *(prometheus_client.CollectorRegistry() for _ in range(2))
    mine = Distributions(ours, "seconds", "Text.", ["kind"], bounds).of("a")
    yours = prometheus_client.Histogram("seconds", "Text.", ["kind"], buckets=bounds, registry=theirs).labels("a")
    for value in (0.0, 0.1, 0.1000001, 0.3, 0.5, 2.0, 2.5, 1e9):
        mine.observe(value)
        yours.observe(value)

    def samples(registry: prometheus_client.CollectorRegistry) -> set[tuple[str, str, float]]:
        return {
            (one.name, str(sorted(one.labels.items())), one.value)
            for family in registry.collect()
            for one in family.samples
            if not one.name.endswith("_created")
        }

    assert samples(ours) == samples(theirs)


@pytest.mark.anyio
async def test_a_loop_that_is_held_up_is_late() -> None:
    lags: list[float] = []
    lag = LoopLag(lags.append, seconds=0.01)
    lag.start()
    asyncio.get_running_loop().call_soon(time.sleep, 0.2)
    await wait_until_async(lambda: lags)
    lag.close()
    assert lags[0] > 0.15
    count = len(lags)
    await asyncio.sleep(0.05)
    assert len(lags) == count, "it goes on after its end"
