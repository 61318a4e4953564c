"""The pages of jobs, of fal's keys and of alerts."""

from __future__ import annotations

import asyncio
import html
import re
import secrets

import pytest

from proxy.stores.alerts import Alert
from proxy.stores.sql import SqlStores
from tests.clients.expectations import HELD
from tests.console.operators import Operator, assert_refused
from tests.support.audit_log import read_entries
from tests.support.limited import NEXT, Client, operating
from tests.support.stack import Stack

EVIL = "<b>&'\""


def listed(page: str) -> list[str]:
    return re.findall(r'href="/console/jobs/([^"]+)"><code>', page)


def ids_of(proxy: Stack, **query: str) -> list[str]:
    with operating(proxy) as admin:
        jobs = admin.get("/v1/admin/jobs", params={"tenant": "acme", **query}).raise_for_status().json()["jobs"]
    return [job["id"] for job in jobs]


def test_jobs_are_found_by_tenant_state_endpoint_and_user(proxy: Stack, viewer: Operator) -> None:
    with Client(proxy, proxy.token("bob")) as caller, Client(proxy, proxy.token(EVIL)) as other:
        assert other.run().status_code == 200
        job = caller.submitted(HELD)
        assert "Choose a tenant" in viewer.get("/console/jobs").text
        for query in ({}, {"status": "open"}, {"status": "over"}, {"endpoint": NEXT}, {"subject": "bob"}):
            wanted = "&".join(f"{name}={value}" for name, value in query.items())
            found = listed(viewer.get(f"/console/jobs?tenant=acme&{wanted}").text)
            assert found == ids_of(proxy, **query)[:50] and found
        assert not set(ids_of(proxy, status="open")) & set(ids_of(proxy, status="over"))
        page = viewer.get("/console/jobs?tenant=acme").text
        assert EVIL not in page and EVIL in html.unescape(page)
        caller.cancel(job)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/console/jobs?tenant=nobody", 404),
        ("/console/jobs?tenant=acme&status=x", 400),
        ("/console/jobs?tenant=acme&endpoint=..", 400),
        ("/console/jobs?tenant=acme&cursor=x", 400),
        ("/console/jobs?tenant=acme&limit=5", 400),
        ("/console/jobs?tenant=acme&subject=%20x", 400),
        ("/console/jobs/nobody", 404),
        ("/console/alerts?tenant=NO", 400),
        ("/console/alerts?cursor=x", 400),
        ("/console/alerts?delivery=x", 400),
        ("/console/upstreams?x=1", 400),
        ("/console?x=1", 400),
    ],
)
def test_a_query_that_is_wrong_is_refused(viewer: Operator, path: str, status: int) -> None:
    assert_refused(viewer.get(path), status, "not_found" if status == 404 else "bad_request")


def test_a_job_has_its_timeline_and_is_cancelled(proxy: Stack, viewer: Operator, night_shift: Operator) -> None:
    with Client(proxy, proxy.token("carol")) as caller:
        request_id = caller.submitted(HELD)
        # fal's own id opens the same page.
        page = night_shift.get(f"/console/jobs/{request_id}").text
        assert request_id in page and "carol" in page and "<span>submitted</span>" in page
        cancel = f"/console/jobs/{request_id}/cancel"
        assert re.search(r'href="/console/jobs/[^"]+/cancel"', page)
        assert "/cancel" not in viewer.get(f"/console/jobs/{request_id}").text
        assert_refused(viewer.post(cancel), 403, "not_allowed")
        answer = night_shift.post(cancel)
        assert answer.status_code == 303
        last = read_entries(proxy.settings.stores.database_url.reveal())[-1]
        assert (last["by"], last["action"], last["tenant"]) == ("console:token:night-shift", "job.cancel", "acme")
        assert answer.headers["location"] == f"/console/jobs/{last['target']}"


def test_only_a_job_in_fals_queue_is_cancelled(proxy: Stack, night_shift: Operator) -> None:
    with Client(proxy, proxy.token("dave")) as caller:
        assert caller.run().status_code == 200
    (job,) = ids_of(proxy, subject="dave")
    assert "/cancel" not in night_shift.get(f"/console/jobs/{job}").text
    assert_refused(night_shift.post(f"/console/jobs/{job}/cancel"), 400, "bad_request")


def test_the_keys_of_fal_are_listed_by_name(proxy: Stack, viewer: Operator) -> None:
    page = viewer.get("/console/upstreams").text
    assert '<th scope="row">default</th>' in page and "healthy" in page
    assert proxy.settings.fal.key.reveal() not in page


def raise_alerts(proxy: Stack, *details: dict[str, object], receivers: tuple[str, ...] = ()) -> list[str]:
    """Raise alerts, a second apart; their ids."""

    async def add() -> list[str]:
        stores, ids = SqlStores(proxy.settings.stores.database_url.reveal()), []
        try:
            for number, one in enumerate(details):
                alert = Alert(secrets.token_hex(16), "quota.reached", "acme", proxy.clock.now() + number, EVIL, one)
                ids.append(alert.id)
                await stores.alerts.add([alert], lambda alert: receivers)
        finally:
            await stores.close()
        return ids

    return asyncio.run(add())


def test_alerts_are_listed_newest_first(proxy: Stack, viewer: Operator) -> None:
    details = [{"unit": EVIL, "number": number} for number in range(60)]
    raise_alerts(proxy, *details)
    page = viewer.get("/console/alerts?tenant=acme").text
    assert EVIL not in page and html.unescape(page).count(f"unit: {EVIL}") == 50
    more = re.search(r'rel="next" href="([^"]+)"', page)
    assert more
    rest = viewer.get(html.unescape(more[1])).text
    numbers = [int(number) for number in re.findall(r"number: (\d+)", page + rest)]
    assert [number for number in numbers if number < 60] == list(range(59, -1, -1)) and 'rel="next"' not in rest
    assert "Nothing was raised" in viewer.get("/console/alerts?tenant=globex").text


def test_details_of_an_alert_are_written_for_people(proxy: Stack, viewer: Operator) -> None:
    raise_alerts(proxy, {"limit": 1000000.0, "window": "lifetime", "resets_at": None})
    raise_alerts(proxy, {"limit": 0.5, "resets_at": "2099-02-01T00:00:00+00:00"})
    page = viewer.get("/console/alerts").text
    assert "<td>limit: 1,000,000, window: lifetime</td>" in page and "None" not in page
    assert "<td>limit: 0.5, resets_at: 2099-02-01 00:00:00 UTC</td>" in page


def test_an_alert_is_sent_again_by_an_operator(proxy: Stack, viewer: Operator, night_shift: Operator) -> None:
    (received,) = raise_alerts(proxy, {"number": 100}, receivers=("acme",))
    (unreceived,) = raise_alerts(proxy, {"number": 101})
    page = night_shift.get("/console/alerts?delivery=waiting").text
    resend = f"/console/alerts/{received}/resend"
    assert page.count("to the tenant") == 1 and resend in page
    assert "/resend" not in viewer.get("/console/alerts?delivery=waiting").text
    assert_refused(viewer.post(resend), 403, "not_allowed")
    assert night_shift.post(resend).headers["location"] == "/console/alerts"
    last = read_entries(proxy.settings.stores.database_url.reveal())[-1]
    assert (last["by"], last["action"]) == ("console:token:night-shift", "alert.resend")
    assert_refused(night_shift.post(f"/console/alerts/{unreceived}/resend"), 400, "bad_request")
    assert_refused(night_shift.post("/console/alerts/nobody/resend"), 404, "not_found")
