"""Rate limits as callers meet them: which scope refuses, for how long, and that a refusal spends nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from starlette.requests import Request

from proxy.limits.rates import DESCRIPTION_LIMIT, visitor_of
from tests.support.images import png
from tests.support.limited import (
    NEXT,
    PROTOCOL,
    Client,
    asking,
    assert_refused_with,
    limited_proxy,
    operating,
    per,
    plan,
    posts,
)
from tests.support.sandbox import SandboxControl
from tests.support.servers import free_port
from tests.support.stack import Stack

NO_RATES = {"ip": None, "session": None, "subject": None, "tenant": None}
PLANS = {
    "ip": plan(rate_limits={**NO_RATES, "ip": "2/minute"}),
    "session": plan(rate_limits={**NO_RATES, "session": "2/minute"}),
    "subject": plan(rate_limits={**NO_RATES, "subject": "2/minute"}),
    "tenant": plan(rate_limits={**NO_RATES, "tenant": "2/minute"}),
    "both": plan(rate_limits={**NO_RATES, "session": "2/minute", "tenant": "3/minute"}),
    "sliding": plan(rate_limits={**NO_RATES, "subject": "3/minute"}),
    "polls": plan(rate_limits={**NO_RATES, "session": "2/minute"}, poll_limits={"session": "5/second"}),
    "hourly": plan(rate_limits={**NO_RATES, "session": "1/hour", "tenant": "10/second"}),
    "plain": plan(),
    **{f"long-{scope}": plan(rate_limits={**NO_RATES, scope: "2/hour"}) for scope in ("ip", "tenant")},
    **{f"short-{scope}": plan(rate_limits={**NO_RATES, scope: "1000/second"}) for scope in ("ip", "tenant")},
}
#: How many guest sessions an address gets, by the tenant.
GUESTS = {"long-ip": "2/hour", "short-ip": "1000/second", "hourly": "1/hour"}
TENANTS = {
    name: {"allowed_origins": [f"https://{name}.example"], "guests": {"enabled": True, "per_address": rate}}
    for name, rate in GUESTS.items()
}


@pytest.fixture(scope="module")
def limited(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A proxy that believes forwarded addresses from the loopback, as `serve` makes its server do."""
    trusting = {"proxy_headers": True, "forwarded_allow_ips": ["127.0.0.0/8"]}
    folder = tmp_path_factory.mktemp("rates")
    with limited_proxy(shared_sandbox, folder, PLANS, tenants=TENANTS, server=trusting) as stack:
        yield stack


@pytest.fixture
def proxy(limited: Stack, sandbox: SandboxControl) -> Stack:
    return limited


def client(proxy: Stack, tenant: str, subject: str = "alice", address: str = "192.0.2.1", **more: str) -> Client:
    """A caller with a session of its own, from an address of its own."""
    return Client(proxy, proxy.token(subject, tenant=tenant), **more, **{"x-forwarded-for": address})


# --- each scope


@pytest.mark.parametrize(
    ("scope", "same", "other"),
    [
        ("ip", {"subject": "bob"}, {"address": "192.0.2.2"}),
        ("subject", {"address": "192.0.2.2"}, {"subject": "bob"}),
        ("tenant", {"subject": "bob", "address": "192.0.2.2"}, None),
    ],
)
@pytest.mark.parametrize("surface", ["hosts", PROTOCOL])
def test_a_full_scope_refuses_all_callers_in_it_and_no_others(
    proxy: Stack, scope: str, same: dict[str, str], other: dict[str, str] | None, surface: str
) -> None:
    proxy.clock.advance(60)
    with client(proxy, scope, surface=surface) as alice, client(proxy, scope, **same) as another:
        assert [alice.run().status_code, another.run().status_code] == [200, 200]
        for refused in (alice.run(), another.submit()):
            body = assert_refused_with(refused, 429, "rate_limited", scope)
            assert body["retry_after"] == 60
    assert len(posts(proxy.sandbox)) == 2
    if other is not None:
        with client(proxy, scope, **other) as stranger:
            assert stranger.run().status_code == 200


def test_another_session_of_the_same_user_has_a_limit_of_its_own(proxy: Stack) -> None:
    with client(proxy, "session") as first, client(proxy, "session") as second:
        assert [first.run().status_code for _ in range(3)] == [200, 200, 429]
        assert [second.run().status_code for _ in range(3)] == [200, 200, 429]
        assert_refused_with(second.run(), 429, "rate_limited", "session")


def test_subjects_of_two_tenants_share_a_name_and_no_limit(proxy: Stack) -> None:
    with client(proxy, "subject", "carol") as here, client(proxy, "sliding", "carol") as there:
        assert [here.run().status_code for _ in range(3)] == [200, 200, 429]
        assert [there.run().status_code for _ in range(4)] == [200, 200, 200, 429]


def test_a_tenants_own_calls_are_limited_as_one_session(proxy: Stack) -> None:
    with Client(proxy, proxy.tenant_key("session")) as server:
        assert [server.run().status_code for _ in range(3)] == [200, 200, 429]
        assert_refused_with(server.run(), 429, "rate_limited", "session")


# --- time


@pytest.mark.parametrize("scope", ["ip", "session", "subject", "tenant"])
def test_retry_after_is_right_to_the_second(proxy: Stack, scope: str) -> None:
    proxy.clock.advance(61)
    with client(proxy, scope, "dora") as dora:
        assert dora.run().status_code == 200
        proxy.clock.advance(20)
        assert dora.run().status_code == 200
        proxy.clock.advance(7.25)
        wait = assert_refused_with(dora.run(), 429, "rate_limited", scope)["retry_after"]
        assert wait == 33  # 32.75, rounded up
        proxy.clock.advance(wait - 1)
        assert assert_refused_with(dora.run(), 429, "rate_limited", scope)["retry_after"] == 1
        proxy.clock.advance(1)
        assert dora.run().status_code == 200
        assert assert_refused_with(dora.run(), 429, "rate_limited", scope)["retry_after"] == 20


def test_windows_slide_and_do_not_jump(proxy: Stack) -> None:
    with client(proxy, "sliding", "eve") as eve:
        for _ in range(3):
            assert eve.run().status_code == 200
            proxy.clock.advance(19)
        proxy.clock.advance(2)  # 59 s after the first: a new calendar minute may have begun
        assert assert_refused_with(eve.run(), 429, "rate_limited", "subject")["retry_after"] == 1
        proxy.clock.advance(1)
        assert [eve.run().status_code, eve.run().status_code] == [200, 429]
        proxy.clock.advance(19)
        assert [eve.run().status_code, eve.run().status_code] == [200, 429]


def test_a_call_on_a_plan_with_a_shorter_window_ends_no_longer_one(proxy: Stack) -> None:
    address = "192.0.2.77"
    with client(proxy, "long-ip", address=address) as slow, client(proxy, "short-ip", address=address) as fast:
        assert [slow.run().status_code for _ in range(2)] == [200, 200]
        proxy.clock.advance(2)
        assert fast.run().status_code == 200
        assert_refused_with(slow.run(), 429, "rate_limited", "ip")


def test_a_user_with_another_plan_ends_no_longer_window_of_the_tenant(proxy: Stack) -> None:
    override = {"plan": "short-tenant", "until": "2099-01-01"}
    with operating(proxy) as operator:
        operator.put("/v1/admin/tenants/long-tenant/overrides/bob", json=override).raise_for_status()
    with client(proxy, "long-tenant") as alice, client(proxy, "long-tenant", "bob") as bob:
        assert [alice.run().status_code for _ in range(2)] == [200, 200]
        proxy.clock.advance(2)
        assert bob.run().status_code == 200
        assert_refused_with(alice.run(), 429, "rate_limited", "tenant")


def test_each_tenant_counts_the_guests_of_an_address_itself(proxy: Stack) -> None:
    def visit(tenant: str) -> httpx.Response:
        origin = {"origin": f"https://{tenant}.example"}
        return page.post("/v1/sessions/guest", json={"tenant": tenant}, headers=origin)

    with proxy.client("", headers={"x-forwarded-for": "192.0.2.88"}) as page:
        assert [visit("long-ip").status_code for _ in range(3)] == [201, 201, 429]
        assert [visit("hourly").status_code for _ in range(2)] == [201, 429]
        for _ in range(2):
            proxy.clock.advance(2)
            assert visit("short-ip").status_code == 201
        assert_refused_with(visit("long-ip"), 429, "rate_limited", "ip")


def test_retry_after_is_never_zero(proxy: Stack) -> None:
    with client(proxy, "session", "finn") as finn:
        assert [finn.run().status_code for _ in range(2)] == [200, 200]
        proxy.clock.advance(59.875)
        refused = finn.run()
        assert assert_refused_with(refused, 429, "rate_limited", "session")["retry_after"] == 1
        assert refused.headers["retry-after"] == "1"


# --- together


def test_a_refusal_by_one_scope_spends_nothing_of_the_others(proxy: Stack) -> None:
    with client(proxy, "both", "alice") as alice, client(proxy, "both", "bob") as bob:
        assert [alice.run().status_code for _ in range(2)] == [200, 200]
        for _ in range(5):
            assert_refused_with(alice.run(), 429, "rate_limited", "session")
        # Three calls of the tenant are allowed; had a refusal been charged, none would be left.
        assert bob.run().status_code == 200
        # And the other way round: bob's session is not charged while the tenant refuses.
        proxy.clock.advance(30)
        for _ in range(5):
            assert_refused_with(bob.run(), 429, "rate_limited", "tenant")
        proxy.clock.advance(30)
        assert [bob.run().status_code for _ in range(3)] == [200, 200, 429]


def test_the_scope_that_is_named_is_the_one_that_lasts_longest(proxy: Stack) -> None:
    proxy.clock.advance(3600)
    people = [client(proxy, "hourly", f"user-{number}") for number in range(10)]
    for one in people:
        assert one.run().status_code == 200
    # Both are full: the session for an hour, the tenant for a second.
    assert assert_refused_with(people[0].run(), 429, "rate_limited", "session")["retry_after"] == 3600
    with client(proxy, "hourly", "fresh") as fresh:
        assert assert_refused_with(fresh.run(), 429, "rate_limited", "tenant")["retry_after"] == 1
    for one in people:
        one.http.close()


def test_a_call_that_is_refused_before_its_rate_limit_spends_nothing(proxy: Stack) -> None:
    """A closed endpoint and an unknown job cost no call. A wrong input costs one, as it has to be read."""
    with client(proxy, "session", "gina") as gina:
        for _ in range(3):
            assert gina.run(endpoint="fal-ai/llava-llama3-8b-v11").status_code == 403
            assert gina.call("GET", f"queue/{NEXT}/requests/nothing/status").status_code == 404
        assert [gina.run(temperature=7).status_code, *(gina.run().status_code for _ in range(2))] == [422, 200, 429]


# --- polls


READS = ("/v1/session", "/v1/endpoints", f"/v1/endpoints/{NEXT}", "/v1/jobs")


@pytest.mark.parametrize("path", READS)
def test_reads_of_own_facts_count_as_polls(proxy: Stack, path: str) -> None:
    proxy.clock.advance(60)
    with client(proxy, "polls", f"reader of {path}") as reader:
        answers = [reader.http.get(path) for _ in range(6)]
        assert [answer.status_code for answer in answers] == [200] * 5 + [429]
        assert answers[0].headers["ratelimit"] == '"session";r=4;t=1'
        assert assert_refused_with(answers[-1], 429, "rate_limited", "session")["retry_after"] == 1
        assert reader.run().status_code == 200
        proxy.clock.advance(1)
        assert reader.http.get(path).status_code == 200


def test_reads_of_usage_count_as_calls(proxy: Stack) -> None:
    proxy.clock.advance(60)
    with client(proxy, "polls", "accountant") as accountant:
        answers = [accountant.http.get("/v1/usage") for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert_refused_with(answers[-1], 429, "rate_limited", "session")
        assert accountant.http.get("/v1/session").status_code == 200


def test_the_description_has_a_flood_guard(proxy: Stack) -> None:
    most = int(DESCRIPTION_LIMIT.partition("/")[0])
    with (
        client(proxy, "plain", address="192.0.2.200") as reader,
        client(proxy, "plain", address="192.0.2.201") as other,
    ):
        assert {reader.http.get("/openapi.json").status_code for _ in range(most)} == {200}
        assert assert_refused_with(reader.http.get("/openapi.json"), 429, "rate_limited", "ip")["retry_after"] == 60
        assert other.http.get("/openapi.json").status_code == 200


def test_polls_have_a_budget_of_their_own(proxy: Stack) -> None:
    with client(proxy, "polls", "hana") as hana:
        job = hana.submitted()
        answers = [hana.status(job) for _ in range(6)]
        assert [answer.is_success for answer in answers] == [True] * 5 + [False]
        body = assert_refused_with(answers[-1], 429, "rate_limited", "session")
        assert body["retry_after"] == 1
        assert answers[0].headers["ratelimit-policy"] == '"session";q=5;w=1'
        # Results and cancels are polls too; the right to submit is untouched, and the other way round.
        for other in (hana.result(job), hana.cancel(job)):
            assert_refused_with(other, 429, "rate_limited", "session")
        assert [hana.submit().status_code, hana.submit().status_code] == [200, 429]
        proxy.clock.advance(1)
        assert hana.status(job).is_success and hana.submit().status_code == 429


# --- headers


def test_the_headers_name_every_limit_and_what_is_left_of_the_nearest(proxy: Stack) -> None:
    proxy.clock.advance(61)
    headers = []
    with client(proxy, "both", "ines") as ines:
        for _ in range(3):
            answer = ines.run()
            assert answer.headers["ratelimit-policy"] == '"session";q=2;w=60, "tenant";q=3;w=60'
            headers.append(answer.headers["ratelimit"])
            proxy.clock.advance(10.5)
    assert answer.status_code == 429
    # The header shows the window with the smallest part left, and when its oldest call leaves it.
    assert headers == ['"session";r=1;t=60', '"session";r=0;t=50', '"session";r=0;t=39']


def test_a_call_that_is_refused_after_it_was_counted_has_the_headers_too(proxy: Stack) -> None:
    with client(proxy, "sliding", "carol") as carol:
        wrong = carol.call("POST", f"run/{NEXT}", {"image_url": "https://files.example/a.png"})
        assert wrong.status_code == 422 and wrong.headers["ratelimit"].startswith('"subject";r=2;')
        assert carol.run().headers["ratelimit"].startswith('"subject";r=1;')
        assert wrong.headers["ratelimit-policy"] == '"subject";q=3;w=60'
        # Each header stands there once, also where the limit itself refuses.
        carol.run()
        refused = carol.run()
        assert refused.status_code == 429 and len(refused.headers.get_list("ratelimit")) == 1


def test_where_there_is_no_limit_there_is_no_header(proxy: Stack) -> None:
    with client(proxy, "plain") as free:
        answer = free.run()
        assert answer.status_code == 200 and not [name for name in answer.headers if name.startswith("ratelimit")]


def test_pages_may_read_the_headers(proxy: Stack, sandbox: SandboxControl, tmp_path: Path) -> None:
    origin = "https://app.example"
    tenants = {"page": {"allowed_origins": [origin]}}
    with (
        limited_proxy(sandbox, tmp_path, {"page": PLANS["session"]}, tenants=tenants) as own,
        Client(own, own.token(tenant="page"), origin=origin) as page,
    ):
        answers = [page.run() for _ in range(3)]
    for answer in answers:
        readable = re.split(r", *", answer.headers["access-control-expose-headers"].lower())
        assert {"ratelimit", "ratelimit-policy", "retry-after", "idempotency-replayed"} <= set(readable)
    assert answers[-1].status_code == 429


# --- addresses


def test_all_addresses_of_one_ipv6_household_count_as_one(proxy: Stack) -> None:
    def calls(*addresses: str) -> list[int]:
        found = []
        for number, address in enumerate(addresses):
            with client(proxy, "ip", f"user-{number}", address) as one:
                found.append(one.run().status_code)
        return found

    assert calls("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", "2001:db8:1:2:3:4:5:6") == [200, 200, 429]
    assert calls("2001:db8:1:3::1") == [200]


@pytest.mark.parametrize(
    ("host", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:0db8:0001:0002::", "2001:db8:1:2::/64"),
        ("::1", "::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("testclient", "testclient"),
        ("", "unknown"),
    ],
)
def test_an_address_counts_as_its_network(host: str, network: str) -> None:
    assert visitor_of(Request({"type": "http", "client": (host, 1), "headers": [], "state": {}})) == network


def test_without_a_client_there_is_still_a_key() -> None:
    assert visitor_of(Request({"type": "http", "client": None, "headers": [], "state": {}})) == "unknown"


def test_forwarded_addresses_are_believed_from_trusted_networks_only(sandbox: SandboxControl, tmp_path: Path) -> None:
    """Other callers who write another address into the header do not get another limit."""
    trusting = {"proxy_headers": True, "forwarded_allow_ips": ["10.0.0.0/8"]}
    for settings in (trusting, {"proxy_headers": False}):
        folder = tmp_path / str(settings["proxy_headers"])
        folder.mkdir()
        with limited_proxy(sandbox, folder, {"ip": PLANS["ip"]}, server=settings) as own:
            statuses = []
            for number in range(3):
                with client(own, "ip", f"user-{number}", f"192.0.2.{number}") as one:
                    statuses.append(one.run().status_code)
            assert statuses == [200, 200, 429]


def test_of_a_chain_of_proxies_the_last_that_is_not_trusted_counts(proxy: Stack) -> None:
    """The addresses before it were written by the caller."""
    statuses = []
    for number in range(3):
        with client(proxy, "ip", f"user-{number}", f"203.0.113.{number}, 192.0.2.77, 127.0.0.5") as one:
            statuses.append(one.run().status_code)
    assert statuses == [200, 200, 429]


# --- the counters are down


def metric(stack: Stack, name: str) -> float:
    text = httpx.get(f"{stack.url}/metrics", trust_env=False, verify=False, timeout=60).text
    found = re.search(rf"^{name} (\S+)$", text, re.M)
    assert found, text
    return float(found[1])


def test_no_call_passes_while_the_counters_are_down(sandbox: SandboxControl, tmp_path: Path) -> None:
    nowhere = {"PROXY_REDIS_URL": f"redis://127.0.0.1:{free_port()}/0"}
    with limited_proxy(sandbox, tmp_path, PLANS, environ=nowhere) as own, client(own, "session") as alice:
        initiate = alice.call("POST", "rest/storage/upload/initiate", {})
        native = alice.http.post("/v1/uploads", content=png(99), headers={"content-type": "image/png"})
        estimated = alice.http.post("/v1/estimate", json={"endpoint": NEXT, "input": asking("?")})
        for refused in (alice.run(), alice.submit(), initiate, native, estimated):
            assert assert_refused_with(refused, 503, "store_unavailable")["retry_after"] == 1
        assert metric(own, "fal_proxy_uncounted_total") == 5
        assert httpx.get(f"{own.url}/readyz", trust_env=False, verify=False, timeout=60).status_code == 503
        assert httpx.get(f"{own.url}/livez", trust_env=False, verify=False, timeout=60).status_code == 200
    assert not posts(sandbox)


def test_calls_pass_without_counters_if_the_operator_wants_that(
    sandbox: SandboxControl, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nowhere = {
        "PROXY_REDIS_URL": f"redis://127.0.0.1:{free_port()}/0",
        "PROXY_RATE_LIMIT_ON_ERROR": "open",
    }
    plans = {"session": {**PLANS["session"], "quotas": [per("tenant", "requests", 4)]}}
    with limited_proxy(sandbox, tmp_path, plans, environ=nowhere) as own, client(own, "session") as alice:
        assert [alice.run().status_code for _ in range(3)] == [200, 200, 200]
        job = alice.submitted()
        assert alice.status(job).is_success
        # The quota is the ledger's: it holds all the same.
        assert_refused_with(alice.run(), 402, "quota_exceeded", "tenant")
        estimated = alice.http.post("/v1/estimate", json={"endpoint": NEXT, "input": asking("?")})
        assert estimated.json()["refusal"]["error_type"] == "quota_exceeded"
        assert metric(own, "fal_proxy_uncounted_total") >= 6
    assert len(posts(sandbox)) == 4
    # A line a minute, however many calls there are.
    lines = [one.getMessage() for one in caplog.records if "not counted" in one.getMessage()]
    assert sorted(lines) == ["leases not counted: calls let through", "rate limits not counted: calls let through"]
