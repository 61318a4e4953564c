"""What has become of alerts at their receivers: operators list it, and send dead letters again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from proxy.alerts.delivery import GIVE_UP_SECONDS, PAUSES
from proxy.alerts.listing import AlertFilter, AlertList
from proxy.stores.audit import Author
from proxy.stores.deliveries import DEAD, SENT, WAITING
from tests.alerts.test_delivery import Fleet, deliver, fleet, host, trusted
from tests.support.alerts import raise_alert
from tests.support.audit_log import AUTHOR, read_entries
from tests.support.limited import assert_refused_with, limited_proxy, operating, plan
from tests.support.sandbox import SandboxControl
from tests.support.webhooks import WebhookHost

__all__ = ["fleet", "host", "trusted"]


@pytest.mark.anyio
async def test_dead_letters_are_listed_and_taken_when_they_are_sent_again(fleet: Fleet, host: WebhookHost) -> None:
    await fleet.name_receivers(acme=f"{host.url}/acme", globex=f"{host.url}/globex")
    host.status["acme"] = 500
    watch, delivery = await fleet.process(operator=f"{host.url}/operator")
    dead = await fleet.raise_alerts(watch, 2)
    taken = await fleet.raise_alerts(watch, 1, tenant="globex")
    await fleet.pass_time(GIVE_UP_SECONDS + PAUSES[-1] * 1.25, delivery, step=1200)
    alerts = AlertList(fleet.stores.alerts, fleet.stores.deliveries)
    listed = await alerts.list_newest(9, AlertFilter(delivery=DEAD))
    assert [one.alert.id for one in listed] == dead[::-1]
    (ours, theirs) = listed[0].describe()["deliveries"]
    assert (ours["receiver"], ours["state"], ours["problem"]) == ("operator", SENT, None)
    assert (theirs["receiver"], theirs["state"]) == ("tenant", DEAD)
    first = listed[1].describe()["deliveries"][1]
    assert first["problem"] == "the answer is 500" and first["attempts"] == len(host.received["acme"])
    assert [one.alert.id for one in await alerts.list_newest(9, AlertFilter(delivery=SENT))] == [*taken, *dead[::-1]]
    assert await alerts.list_newest(9, AlertFilter("globex", DEAD)) == []

    # While it still fails, it is sent again for a day; a later alert waits behind it.
    host.received.clear()
    await alerts.resend(dead[0], by=_at(fleet))
    later = await fleet.raise_alerts(watch, 1)
    await fleet.pass_time(20, delivery, step=5)
    assert [one["data"]["id"] for one in host.bodies("acme")] == [dead[0]] * 2
    assert [one.alert.id for one in await alerts.list_newest(9, AlertFilter(delivery=WAITING))] == [*later, dead[0]]
    host.status["acme"] = 204
    await alerts.resend(dead[1], by=_at(fleet))
    await deliver(delivery)
    assert host.taken["acme"] == [*dead, *later]
    assert host.taken["operator"].count(dead[0]) == 2, "the operator gets it again too"
    assert await alerts.list_newest(9, AlertFilter(delivery=WAITING)) == []


def _at(fleet: Fleet) -> Author:
    return replace(AUTHOR, at=fleet.clock.now())


def test_operators_send_an_alert_again_and_the_audit_log_says_so(sandbox: SandboxControl, tmp_path: Path) -> None:
    with limited_proxy(sandbox, tmp_path, {"acme": plan()}) as stack, operating(stack) as operator:
        url = stack.settings.stores.database_url.reveal()
        raise_alert(url, "a1", "acme", "", "acme")
        raise_alert(url, "b2", "acme")
        before = len(read_entries(url))
        answer = operator.post("/v1/admin/alerts/a1/resend")
        assert answer.status_code == 202
        assert [(one["receiver"], one["state"], one["attempts"]) for one in answer.json()["deliveries"]] == [
            ("operator", "waiting", 0),
            ("tenant", "waiting", 0),
        ]
        (entry,) = read_entries(url)[before:]
        assert (entry["action"], entry["tenant"], entry["target"]) == ("alert.resend", "acme", "a1")
        message = assert_refused_with(operator.post("/v1/admin/alerts/b2/resend"), 400, "bad_request")["message"]
        assert "had no receiver" in message
        for unknown in ("c3", "a" * 33, "%C3%A4", "a%2Fb", "a-1"):
            assert_refused_with(operator.post(f"/v1/admin/alerts/{unknown}/resend"), 404, "not_found")
        assert_refused_with(operator.post("/v1/admin/alerts/a1/resend", params={"now": "1"}), 400, "bad_request")
        assert len(read_entries(url)) == before + 1
        for state, ids in {"waiting": ["a1"], "dead": []}.items():
            found = operator.get("/v1/admin/alerts", params={"delivery": state}).json()["alerts"]
            assert [alert["id"] for alert in found] == ids


def test_a_page_of_dead_letters_goes_on_where_the_last_one_ended(sandbox: SandboxControl, tmp_path: Path) -> None:
    with limited_proxy(sandbox, tmp_path, {"acme": plan()}) as stack, operating(stack) as operator:
        url = stack.settings.stores.database_url.reveal()
        for number in range(5):
            raise_alert(url, f"a{number}", "acme", *([""] if number % 2 == 0 else []), at=100.0 + number)
        query, seen = {"delivery": "waiting", "limit": "1"}, []
        while True:
            page = operator.get("/v1/admin/alerts", params=query).json()
            seen += [alert["id"] for alert in page["alerts"]]
            if page["next_cursor"] is None:
                break
            query["cursor"] = page["next_cursor"]
        assert seen == ["a4", "a2", "a0"]
