"""Alerts on their way to real receivers: signed, in order, once each, and none is held up by another."""

from __future__ import annotations

import asyncio
import logging
import ssl
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from proxy.alerts.delivery import CLAIM_SECONDS, FAILING_SECONDS, GIVE_UP_SECONDS, PAUSES, AlertDelivery
from proxy.alerts.receivers import Receivers
from proxy.alerts.watch import AlertWatch
from proxy.alerts.webhooks import WebhookSender
from proxy.settings import read
from proxy.stores.alerts import Alert
from proxy.stores.sql import SqlStores
from proxy.tenants.directory import Directory
from proxy.tenants.plans import Plan, PlanFile, Tenant
from tests.stores.conftest import OpenStores
from tests.support.audit_log import AUTHOR
from tests.support.clock import MovableClock
from tests.support.secrets import SECRET
from tests.support.servers import free_port
from tests.support.waiting import wait_until_async
from tests.support.webhooks import WebhookHost, webhook_host, webhook_secret

pytestmark = pytest.mark.anyio
ACME, GLOBEX, OURS = (webhook_secret(name) for name in ("acme", "globex", "operator"))
LOOPBACK = ("127.0.0.0/8", "::1")
HOUR = 3600.0


class Fleet:
    """Processes with one database, and the receivers that they deliver to."""

    def __init__(self, stores: SqlStores, trust: ssl.SSLContext | None) -> None:
        self.clock = MovableClock()
        self.stores = stores
        self.counted: Counter[str] = Counter()
        self.oldest = 0.0
        self.urls: dict[str, str] = {}
        self.networks = LOOPBACK
        self.seconds = 10.0
        self.trust = trust
        self._number = 0
        #: What is raised the next time.
        self.raised: tuple[Alert, ...] = ()

    async def name_receivers(self, **urls: str) -> None:
        """Give tenants these webhooks, and no other."""
        plan = Plan(endpoints=frozenset({"fal-ai/llava-next"}))
        tenants = tuple(
            Tenant.model_validate({"id": name, "plan": "free", **_webhook(name, urls)}) for name in ("acme", "globex")
        )
        await Directory(self.stores.directory, self.clock).apply(
            PlanFile(plans={"free": plan}, tenants=tenants), by=AUTHOR
        )
        # Snapshots of other processes are older than this.
        self.clock.advance(5)

    async def process(
        self, stores: SqlStores | None = None, environ: Mapping[str, str] | None = None, operator: str = ""
    ) -> tuple[AlertWatch, AlertDelivery]:
        """What raises and delivers alerts in one process."""
        stores = stores or self.stores
        ours = {"PROXY_ALERTS_URL": operator, "PROXY_ALERTS_SECRET": OURS} if operator else {}
        base = {"FAL_KEY": "id:secret", "PROXY_SESSION_SECRETS": SECRET, "PROXY_ALERTS_NETWORKS": "127.0.0.0/8,::1"}
        secrets = {"ACME_HOOK_SECRET": ACME, "GLOBEX_HOOK_SECRET": GLOBEX}
        settings = read({**base, **secrets, **ours, **(environ or {})})
        directory = Directory(stores.directory, self.clock)
        await directory.snapshot()
        receivers = Receivers(settings, directory)
        sender = WebhookSender(self.networks, self.clock, self.trust, self.seconds)
        watch = AlertWatch(stores.alerts, [lambda: self.raised], lambda _: None, receivers.list_for)
        return watch, AlertDelivery(
            stores.deliveries, receivers, sender, self.clock, self._count, lambda age: setattr(self, "oldest", age)
        )

    async def raise_alerts(self, watch: AlertWatch, number: int, tenant: str = "acme", **more: Any) -> list[str]:
        """Raise some alerts, a second apart; their ids."""
        raised = []
        for _ in range(number):
            self._number += 1
            self.clock.advance(1)
            raised.append(Alert(f"a{self._number:03}", "quota.reached", tenant, self.clock.now(), **more))
        self.raised = tuple(raised)
        await watch.run_once()
        return [alert.id for alert in raised]

    async def pass_time(self, seconds: float, *deliveries: AlertDelivery, step: float = 60.0) -> None:
        """Let time pass, and all processes look all the while."""
        end = self.clock.now() + seconds
        while self.clock.now() < end:
            self.clock.advance(min(step, end - self.clock.now()))
            await deliver(*deliveries)

    def _count(self, outcome: str, number: int) -> None:
        self.counted += Counter({outcome: number})


def _webhook(name: str, urls: Mapping[str, str]) -> dict[str, Any]:
    if name not in urls:
        return {}
    return {"alerts_webhook": {"url": urls[name], "secret_env": f"{name.upper()}_HOOK_SECRET"}}


async def deliver(*deliveries: AlertDelivery) -> None:
    """Have each process look once, all at the same time, and wait for what it begins."""
    await asyncio.gather(*(one.run_once() for one in deliveries))
    await asyncio.gather(*(one.wait() for one in deliveries))


@pytest.fixture(scope="module")
def trusted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[WebhookHost, ssl.SSLContext]]:
    with webhook_host(tmp_path_factory.mktemp("receivers")) as (host, trust):
        assert trust is not None
        yield host, trust


@pytest.fixture
def host(trusted: tuple[WebhookHost, ssl.SSLContext]) -> WebhookHost:
    for kept in (trusted[0].received, trusted[0].taken, trusted[0].status, trusted[0].gates, trusted[0].most_at_once):
        kept.clear()
    return trusted[0]


@pytest.fixture
def fleet(stores: SqlStores, trusted: tuple[WebhookHost, ssl.SSLContext]) -> Fleet:
    return Fleet(stores, trusted[1])


async def test_each_receiver_gets_its_own_alerts_signed_with_its_own_secret(fleet: Fleet, host: WebhookHost) -> None:
    await fleet.name_receivers(acme=f"{host.url}/acme")
    watch, delivery = await fleet.process(operator=f"{host.url}/operator")
    (first,) = await fleet.raise_alerts(watch, 1, subject="alice", details={"percent": 80})
    (second,) = await fleet.raise_alerts(watch, 1, tenant="globex")
    (third,) = await fleet.raise_alerts(watch, 1, tenant="")
    await deliver(delivery)
    assert host.taken == {"acme": [first], "operator": [first, second, third]}
    (webhook,) = host.received["acme"]
    webhook.assert_signed(ACME)
    host.received["operator"][0].assert_signed(OURS)
    assert webhook.headers["webhook-id"] == first
    assert webhook.headers["webhook-timestamp"] == str(int(fleet.clock.now()))
    assert webhook.headers["content-type"] == "application/json"
    body = webhook.document
    assert body.pop("timestamp").endswith(".000+00:00")
    data = {"id": first, "tenant": "acme", "subject": "alice", "percent": 80}
    assert body == {"type": "quota.reached", "data": data}
    await deliver(delivery)
    assert fleet.counted == {"sent": 4} and fleet.oldest == 0


async def test_while_a_secret_changes_both_sign(fleet: Fleet, host: WebhookHost) -> None:
    await fleet.name_receivers(acme=f"{host.url}/acme")
    newer = webhook_secret("newer")
    watch, delivery = await fleet.process(environ={"ACME_HOOK_SECRET": f"{newer}, {ACME}"})
    await fleet.raise_alerts(watch, 1)
    await deliver(delivery)
    host.received["acme"][0].assert_signed(newer, ACME)


async def test_a_receiver_that_is_down_for_an_hour_gets_each_once_in_order(
    stores: SqlStores, database_url: str, open_stores: OpenStores
) -> None:
    """Nothing listens at its port for an hour, while two processes raise alerts and try."""
    fleet, port, host = Fleet(stores, None), free_port(), WebhookHost()
    await fleet.name_receivers(acme=f"http://127.0.0.1:{port}/acme")
    processes = [await fleet.process(one) for one in (stores, open_stores(database_url))]
    deliveries = [delivery for _, delivery in processes]
    raised = []
    for number in range(6):
        raised += await fleet.raise_alerts(processes[number % 2][0], 2)
        await fleet.pass_time(HOUR / 6, *deliveries)
    assert 5 <= fleet.counted["failed"] <= 9 and fleet.counted["sent"] == 0
    assert fleet.oldest > HOUR - 60
    with webhook_host(None, host, port):
        await fleet.pass_time(HOUR * (1 + 0.25), *deliveries)
        assert host.taken == {"acme": raised}
        assert host.most_at_once == {"acme": 1}
        assert [one["data"]["id"] for one in host.bodies("acme")] == raised
    await deliver(*deliveries)
    assert fleet.counted["sent"] == len(raised) and fleet.counted["dead"] == 0 and fleet.oldest == 0


async def test_an_alert_that_is_not_taken_for_a_day_is_a_dead_letter(fleet: Fleet, host: WebhookHost) -> None:
    await fleet.name_receivers(acme=f"{host.url}/acme")
    host.status["acme"] = 503
    watch, delivery = await fleet.process()
    (first,) = await fleet.raise_alerts(watch, 1)
    await fleet.pass_time(GIVE_UP_SECONDS / 2, delivery, step=600)
    (second,) = await fleet.raise_alerts(watch, 1)
    await fleet.pass_time(GIVE_UP_SECONDS / 2 - 60, delivery, step=600)
    assert fleet.counted["dead"] == 0
    end = fleet.clock.now() + PAUSES[-1] * 1.25 + 600
    while not fleet.counted["dead"] and fleet.clock.now() < end:
        await fleet.pass_time(600, delivery, step=600)
    assert fleet.counted["dead"] == 1
    assert 10 <= len(host.received["acme"]) <= 14 and {one["data"]["id"] for one in host.bodies("acme")} == {first}
    # The next one has its own day, and is taken when the receiver works.
    host.status["acme"] = 204
    await fleet.pass_time(PAUSES[-1] * 1.25, delivery, step=600)
    assert host.taken == {"acme": [second]} and fleet.counted["sent"] == 1


async def test_pauses_grow_and_differ(fleet: Fleet, host: WebhookHost) -> None:
    await fleet.name_receivers(acme=f"{host.url}/acme", globex=f"{host.url}/globex")
    host.status |= {"acme": 500, "globex": 500}
    watch, delivery = await fleet.process()
    await fleet.raise_alerts(watch, 1)
    await fleet.raise_alerts(watch, 1, tenant="globex")
    moments: dict[str, list[float]] = {"acme": [], "globex": []}
    # The fourth pause, of more than 300 s, is hardly ever the same to the second.
    for _ in range(520):
        await deliver(delivery)
        for name, seen in moments.items():
            if len(host.received[name]) > len(seen):
                seen.append(fleet.clock.now())
        fleet.clock.advance(1)
    for seen in moments.values():
        pauses = [later - earlier for earlier, later in pairwise(seen)]
        assert all(least <= pause <= least * 1.25 + 2 for least, pause in zip(PAUSES, pauses, strict=False))
        assert len(pauses) == 4
    assert moments["acme"] != moments["globex"]


async def test_a_receiver_that_wants_no_more_gets_no_more(fleet: Fleet, host: WebhookHost) -> None:
    await fleet.name_receivers(acme=f"{host.url}/acme")
    host.status["acme"] = 410
    watch, delivery = await fleet.process()
    await fleet.raise_alerts(watch, 3)
    await fleet.pass_time(GIVE_UP_SECONDS, delivery, step=600)
    assert len(host.received["acme"]) == 1 and fleet.counted == {"failed": 1, "dead": 3}


async def test_a_slow_receiver_holds_up_no_other(fleet: Fleet, host: WebhookHost) -> None:
    await fleet.name_receivers(acme=f"{host.url}/acme", globex=f"{host.url}/globex")
    gate = host.gates["acme"] = threading.Event()
    watch, delivery = await fleet.process()
    slow = await fleet.raise_alerts(watch, 2)
    quick = await fleet.raise_alerts(watch, 3, tenant="globex")
    await delivery.run_once()
    await wait_until_async(lambda: host.taken.get("globex") == quick)
    assert "acme" not in host.taken
    # Other alerts of the same process still go out, and the slow one is not sent a second time.
    quick += await fleet.raise_alerts(watch, 1, tenant="globex")
    await wait_until_async(lambda: _is_sent_again(delivery, host, quick))
    assert len(host.received["acme"]) == 1
    gate.set()
    await delivery.wait()
    assert host.taken == {"acme": slow, "globex": quick}


async def _is_sent_again(delivery: AlertDelivery, host: WebhookHost, quick: list[str]) -> bool:
    await delivery.run_once()
    return host.taken.get("globex") == quick


async def test_many_processes_send_each_alert_once(
    fleet: Fleet, host: WebhookHost, database_url: str, open_stores: OpenStores
) -> None:
    await fleet.name_receivers(acme=f"{host.url}/acme")
    processes = [await fleet.process(one) for one in (fleet.stores, *(open_stores(database_url) for _ in range(3)))]
    raised = await fleet.raise_alerts(processes[0][0], 20)
    for _ in range(3):
        await deliver(*(delivery for _, delivery in processes))
    assert host.taken == {"acme": raised} and host.most_at_once == {"acme": 1}
    assert fleet.counted == {"sent": 20}


async def test_an_alert_that_a_dead_process_held_is_sent_by_another(fleet: Fleet, host: WebhookHost) -> None:
    await fleet.name_receivers(acme=f"{host.url}/acme")
    watch, delivery = await fleet.process()
    raised = await fleet.raise_alerts(watch, 2)
    now = fleet.clock.now()
    held = await fleet.stores.deliveries.claim("acme", "of-the-dead", now, now + CLAIM_SECONDS)
    assert held is not None and held.alert.id == raised[0]
    assert await fleet.stores.deliveries.claim("acme", "another", now, now + CLAIM_SECONDS) is None
    await fleet.pass_time(CLAIM_SECONDS - 1, delivery, step=10)
    assert host.taken == {}
    await fleet.pass_time(2, delivery)
    assert host.taken == {"acme": raised}
    # If it lives after all, what it says counts no more.
    assert not await fleet.stores.deliveries.record_sent(held, fleet.clock.now())
    assert await fleet.stores.deliveries.record_failed(held, fleet.clock.now(), "late", 0.0, fleet.clock.now()) == 0
    assert fleet.counted == {"sent": 2}


async def test_an_alert_for_a_webhook_that_is_gone_is_a_dead_letter(fleet: Fleet, host: WebhookHost) -> None:
    await fleet.name_receivers(acme=f"{host.url}/acme")
    watch, delivery = await fleet.process()
    await fleet.raise_alerts(watch, 2)
    await fleet.name_receivers()
    await deliver(delivery)
    assert fleet.counted == {"dead": 2} and host.received == {}


async def test_a_process_without_the_setting_leaves_the_operators_alerts_to_others(
    fleet: Fleet, host: WebhookHost
) -> None:
    await fleet.name_receivers()
    watch, delivery = await fleet.process(operator=f"{host.url}/operator")
    raised = await fleet.raise_alerts(watch, 1)
    _, other = await fleet.process()
    await deliver(other)
    assert host.received == {} and fleet.counted == {}
    await deliver(delivery)
    assert host.taken == {"operator": raised}


async def test_a_receiver_that_fails_for_long_is_one_alert_a_day_for_the_operator_alone(
    fleet: Fleet, host: WebhookHost
) -> None:
    await fleet.name_receivers(acme=f"{host.url}/acme")
    host.status["acme"] = 500
    watch, delivery = await fleet.process(operator=f"{host.url}/operator")
    fleet.clock.set("2099-01-10T12:00:00Z")
    (raised,) = await fleet.raise_alerts(watch, 1)
    await fleet.pass_time(FAILING_SECONDS - 60, delivery)
    assert delivery.take() == []
    await fleet.pass_time(HOUR, delivery)
    (alert,) = {alert.id: alert for alert in delivery.take()}.values()
    assert (alert.kind, alert.tenant) == ("delivery.failing", "")
    assert alert.details == {
        "receiver": "tenant",
        "receiver_tenant": "acme",
        "failing_since": "2099-01-10T12:01:01+00:00",
        "problem": "the answer is 500",
    }
    fleet.raised = (alert,)
    await watch.run_once()
    await fleet.pass_time(HOUR, delivery)
    assert host.taken == {"operator": [raised, alert.id]}
    # The last pauses are of four to five hours, and there is an attempt after midnight.
    await fleet.pass_time(16 * HOUR, delivery, step=600)
    assert {one.id == alert.id for one in delivery.take()} == {True, False}, "another day is another alert"


async def test_when_the_operators_own_receiver_fails_it_is_not_sent_there(fleet: Fleet, host: WebhookHost) -> None:
    await fleet.name_receivers()
    host.status["operator"] = 500
    watch, delivery = await fleet.process(operator=f"{host.url}/operator")
    await fleet.raise_alerts(watch, 1)
    await fleet.pass_time(2 * HOUR, delivery)
    fleet.raised = tuple(delivery.take()[:1])
    assert fleet.raised[0].details["receiver"] == "operator"
    await watch.run_once()
    assert await fleet.stores.deliveries.list_of([fleet.raised[0].id]) == []
    assert [alert.kind for alert in await fleet.stores.alerts.list_newest(1)] == ["delivery.failing"]


# --- what is never sent


async def _problem_of(fleet: Fleet, caplog: pytest.LogCaptureFixture, url: str, **environ: str) -> str:
    """Why an alert is not delivered to a URL."""
    caplog.set_level(logging.WARNING, "proxy.alerts.delivery")
    await fleet.name_receivers(acme=url)
    watch, delivery = await fleet.process(environ=environ)
    await fleet.raise_alerts(watch, 1)
    await deliver(delivery)
    assert fleet.counted == {"failed": 1}
    (problem,) = [one.__dict__["log_fields"]["problem"] for one in caplog.records if "not delivered" in one.message]
    assert "whsec" not in caplog.text and ACME not in str([one.__dict__ for one in caplog.records])
    return str(problem)


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "[::1]", "[::ffff:127.0.0.1]"])
async def test_an_address_inside_gets_nothing_unless_a_setting_allows_it(
    fleet: Fleet, host: WebhookHost, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    fleet.networks = ("10.0.0.0/8",)
    problem = await _problem_of(fleet, caplog, f"https://{name}:{host.url.rpartition(':')[2]}/acme")
    assert problem == "its host has an internal address; PROXY_ALERTS_NETWORKS can allow it"
    assert host.received == {}


async def test_plain_http_is_only_for_networks_that_a_setting_names(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    fleet.networks = ("10.0.0.0/8",)
    with webhook_host(None) as (plain, _):
        problem = await _problem_of(fleet, caplog, f"{plain.url}/acme")
        assert "plain http is only for hosts that PROXY_ALERTS_NETWORKS names" in problem
        assert plain.received == {}


async def test_a_receiver_without_a_certificate_gets_nothing(
    fleet: Fleet, host: WebhookHost, caplog: pytest.LogCaptureFixture
) -> None:
    fleet.trust = None
    assert "SSLCertVerificationError" in await _problem_of(fleet, caplog, f"{host.url}/acme")
    assert host.received == {}


async def test_redirects_are_not_followed(fleet: Fleet, host: WebhookHost, caplog: pytest.LogCaptureFixture) -> None:
    host.status["acme"] = 307
    assert await _problem_of(fleet, caplog, f"{host.url}/acme") == "the answer is 307; redirects are not followed"
    assert set(host.received) == {"acme"}


async def test_an_answer_that_takes_too_long_is_none(
    fleet: Fleet, host: WebhookHost, caplog: pytest.LogCaptureFixture
) -> None:
    gate = host.gates["acme"] = threading.Event()
    fleet.seconds = 0.3
    assert await _problem_of(fleet, caplog, f"{host.url}/acme") == "no whole answer within 0.3 seconds"
    gate.set()


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("", "there is no secret in ACME_HOOK_SECRET"),
        ("a password", "must be whsec_ and 24 to 64 bytes in base64"),
        (f"{ACME},whsec_short", "must be whsec_ and 24 to 64 bytes in base64"),
        (SECRET, "the secret is one of the proxy's own, which no other service may see"),
    ],
)
async def test_without_a_good_secret_nothing_is_sent(
    fleet: Fleet, host: WebhookHost, caplog: pytest.LogCaptureFixture, given: str, problem: str
) -> None:
    found = await _problem_of(fleet, caplog, f"{host.url}/acme", ACME_HOOK_SECRET=given)
    assert found.startswith(problem) and host.received == {}
    assert SECRET not in caplog.text and "password" not in caplog.text


async def test_a_secret_in_a_file_is_read_when_it_is_needed(fleet: Fleet, host: WebhookHost, tmp_path: Path) -> None:
    file = tmp_path / "hook"
    plan = Plan(endpoints=frozenset({"fal-ai/llava-next"}))
    webhook = {"url": f"{host.url}/acme", "secret_file": str(file)}
    tenant = Tenant.model_validate({"id": "acme", "plan": "free", "alerts_webhook": webhook})
    await Directory(fleet.stores.directory, fleet.clock).apply(
        PlanFile(plans={"free": plan}, tenants=(tenant,)), by=AUTHOR
    )
    watch, delivery = await fleet.process()
    await fleet.raise_alerts(watch, 1)
    await deliver(delivery)
    assert host.received == {} and fleet.counted == {"failed": 1}
    file.write_text(f"{ACME}\n")
    await fleet.pass_time(10, delivery, step=5)
    host.received["acme"][0].assert_signed(ACME)
