"""Listings: their pages, their filters, and every query that they refuse."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.routes.jobs import HELD, JOBS, new
from tests.support.limited import ADMIN_TOKEN, asking, assert_refused_with, limited_proxy, plan
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack
from tests.support.waiting import wait_until

BIG, SMALL = "fal-ai/llavav15-13b", "fal-ai/llava-next"
UNLIMITED = {"ip": None, "session": None, "subject": None, "tenant": None}
PLANS = {
    name: plan(endpoints=[SMALL, BIG], rate_limits=UNLIMITED, poll_limits=UNLIMITED, concurrency={"subject": 50})
    for name in ("acme", "globex")
}


@pytest.fixture(scope="module")
def limited(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with limited_proxy(shared_sandbox, tmp_path_factory.mktemp("listings"), PLANS) as stack:
        yield stack


@pytest.fixture
def proxy(limited: Stack, sandbox: SandboxControl) -> Stack:
    return limited


@pytest.fixture
def operator(proxy: Stack) -> Iterator[httpx.Client]:
    with proxy.client(ADMIN_TOKEN) as client:
        yield client


def read_pages(client: httpx.Client, path: str, what: str, **query: str) -> list[list[dict[str, Any]]]:
    """Read all pages by following the cursors."""
    pages = []
    cursor: str | None = None
    while True:
        asked = query if cursor is None else {**query, "cursor": cursor}
        answer = client.get(path, params=asked).raise_for_status().json()
        pages.append(answer[what])
        if (cursor := answer["next_cursor"]) is None:
            return pages


def create(proxy: Stack, client: httpx.Client, endpoint: str = SMALL) -> str:
    """Submit a job in a second of its own."""
    proxy.clock.advance(1)
    id_: str = client.post(JOBS, json=new(HELD, endpoint)).raise_for_status().json()["id"]
    return id_


def ids_of(pages: list[list[dict[str, Any]]]) -> list[str]:
    return [one["id"] for page in pages for one in page]


def test_pages_list_each_job_once_newest_first(proxy: Stack) -> None:
    with proxy.client(proxy.token("pages")) as client:
        made = [create(proxy, client) for _ in range(7)]
        pages = read_pages(client, JOBS, "jobs", limit="3")
        assert [len(page) for page in pages] == [3, 3, 1] and ids_of(pages) == made[::-1]
        first = client.get(JOBS, params={"limit": "3"}).json()
        newest = create(proxy, client)
        rest = client.get(JOBS, params={"limit": "100", "cursor": first["next_cursor"]}).json()
        assert [one["id"] for one in rest["jobs"]] == made[3::-1], "a new job shifts no page"
        assert client.get(JOBS).json()["jobs"][0]["id"] == newest


def test_a_cursor_does_not_open_jobs_of_other_callers(proxy: Stack) -> None:
    with proxy.client(proxy.token("first")) as first, proxy.client(proxy.token("second")) as second:
        mine = create(proxy, second)
        for _ in range(2):
            create(proxy, first)
        cursor = first.get(JOBS, params={"limit": "1"}).json()["next_cursor"]
        assert [one["id"] for one in second.get(JOBS, params={"cursor": cursor}).json()["jobs"]] == [mine]


def test_filters_of_own_jobs(proxy: Stack) -> None:
    with proxy.client(proxy.token("filters")) as client:
        over, waiting = create(proxy, client), create(proxy, client)
        other = create(proxy, client, BIG)
        proxy.sandbox.move_job(over, "finish")

        def ids(**query: str) -> list[str]:
            return [one["id"] for one in client.get(JOBS, params=query).json()["jobs"]]

        def is_over() -> bool:
            return bool(client.get(f"{JOBS}/{over}").json()["status"] == "COMPLETED")

        wait_until(is_over, "the job does not end")
        client.get(f"{JOBS}/{over}/result").raise_for_status()
        wait_until(lambda: ids(status="COMPLETED") == [over], "the job is not listed as completed")
        assert set(ids(status="IN_QUEUE")) == {waiting, other}
        assert ids(endpoint=BIG) == [other] and ids(endpoint=SMALL) == [waiting, over]
        listed = client.get(JOBS).json()["jobs"]
        middle = next(one["submitted_at"] for one in listed if one["id"] == waiting)
        assert ids(since=middle) == [other, waiting]
        assert ids(since=middle.replace("+00:00", "Z")) == [other, waiting]
        assert ids(since=middle[:10]) == [other, waiting, over] and ids(since="9999-12-31") == []


def test_a_status_known_to_the_proxy_is_filtered_exactly(proxy: Stack) -> None:
    with proxy.client(proxy.token("watched")) as client:
        job = create(proxy, client)
        proxy.sandbox.move_job(job, "IN_PROGRESS")
        with client.stream("GET", f"{JOBS}/{job}/events") as stream:
            for line in stream.iter_lines():
                if "IN_PROGRESS" in line:
                    break
            assert client.get(JOBS, params={"status": "IN_QUEUE"}).json()["jobs"] == []
            assert [one["id"] for one in client.get(JOBS, params={"status": "IN_PROGRESS"}).json()["jobs"]] == [job]


def test_a_job_whose_result_was_not_read_is_listed_as_over(proxy: Stack) -> None:
    """This endpoint's result says what the job used, so the ledger has it as open until then."""
    with proxy.client(proxy.token("patient")) as client:
        older, waiting, over = create(proxy, client), create(proxy, client), create(proxy, client, BIG)
        for job in (over, older):
            proxy.sandbox.move_job(job, "COMPLETED")
            wait_until(partial(_is_over, client, job), "the job does not end")
        pages = {
            status: [one["id"] for page in read_pages(client, JOBS, "jobs", status=status, limit="1") for one in page]
            for status in ("COMPLETED", "IN_QUEUE", "IN_PROGRESS")
        }
        assert pages == {"COMPLETED": [over, older], "IN_QUEUE": [waiting], "IN_PROGRESS": [waiting]}
        client.get(f"{JOBS}/{over}/result").raise_for_status()
        wait_until(
            lambda: (
                [one["id"] for one in client.get(JOBS, params={"status": "COMPLETED"}).json()["jobs"]] == [over, older]
            ),
            "the settled job is not listed once",
        )


def _is_over(client: httpx.Client, job: str) -> bool:
    return bool(client.get(f"{JOBS}/{job}").json()["status"] == "COMPLETED")


def test_a_narrowed_session_can_filter_by_its_own_endpoints_only(proxy: Stack) -> None:
    with proxy.client(proxy.token("narrow")) as client:
        create(proxy, client)
    with proxy.client(proxy.token("narrow", endpoints=[BIG])) as client:
        assert client.get(JOBS, params={"endpoint": SMALL}).json()["jobs"] == []


def _cursor(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


WRONG = [
    *(
        {"cursor": cursor}
        for cursor in (
            "",
            "x",
            "ä",
            "a" * 301,
            _cursor('[1.0,"' + "a" * 300 + '"]'),
            "////",
            "=====",
            _cursor("{}"),
            _cursor("[1,2]"),
        )
    ),
    *({"cursor": _cursor(text)} for text in ('"name"', '[1e999,"a"]', '[1.0,"a\\u0000"]', '[1.0,""]', '[true,"a"]')),
    *({"limit": limit} for limit in ("0", "-1", "101", "1.5", "ten", "", "9" * 5000)),
    *(
        {"since": since}
        for since in (
            "",
            "today",
            "2026-13-01",
            "2026-01-31T08:00:00",
            "9999-12-31T23:59:59.999999Z",
            "20260131",
            "1" * 5000,
        )
    ),
    *({"status": status} for status in ("", "DONE", "completed")),
    *({"endpoint": endpoint} for endpoint in ("", "a\x00b", "../x", "a" * 5000)),
    {"until": "2026-01-31"},
]


@pytest.mark.parametrize("query", WRONG, ids=lambda query: repr(query)[:40])
def test_a_wrong_query_is_refused_with_an_explanation(proxy: Stack, query: dict[str, str]) -> None:
    with proxy.client() as client:
        (name,) = query
        assert name in assert_refused_with(client.get(JOBS, params=query), 400, "bad_request")["detail"]


@pytest.mark.parametrize(
    "path", ["/v1/admin/jobs", "/v1/admin/tenants", "/v1/admin/tenants/acme/keys", "/v1/admin/tokens"]
)
@pytest.mark.parametrize("query", [{"cursor": "x"}, {"limit": "501"}, {"offset": "1"}])
def test_a_wrong_query_of_the_operator_is_refused(operator: httpx.Client, path: str, query: dict[str, str]) -> None:
    tenant = {"tenant": "acme"} if path.endswith("jobs") else {}
    assert_refused_with(operator.get(path, params={**tenant, **query}), 400, "bad_request")


def test_listings_of_the_operator_have_pages_too(proxy: Stack, operator: httpx.Client) -> None:
    tenants = read_pages(operator, "/v1/admin/tenants", "tenants", limit="1")
    assert len(tenants) >= 2 and ids_of(tenants) == sorted(ids_of(tenants))
    keys = "/v1/admin/tenants/globex/keys"
    made = [operator.post(keys, json={"name": str(number)}).json()["id"] for number in range(3)]
    assert sorted(ids_of(read_pages(operator, keys, "keys", limit="2"))) == sorted(made)
    with proxy.client(proxy.token("paged", tenant="globex")) as client:
        jobs = [create(proxy, client) for _ in range(3)]
    pages = read_pages(operator, "/v1/admin/jobs", "jobs", tenant="globex", subject="paged", limit="2")
    assert [one["request_id"] for page in pages for one in page] == jobs[::-1]
    found = operator.get("/v1/admin/jobs", params={"tenant": "globex", "endpoint": BIG}).json()["jobs"]
    assert found == []


def test_the_list_of_admin_tokens_pages_by_name(operator: httpx.Client) -> None:
    tokens = "/v1/admin/tokens"
    made = ["a-z", "aa", "bob", "carol"]
    for name in reversed(made):
        operator.post(tokens, json={"name": name, "role": "viewer"}).raise_for_status()
    pages = read_pages(operator, tokens, "tokens", limit="3")
    assert [[one["name"] for one in page] for page in pages] == [made[:3], made[3:]]
    first = operator.get(tokens, params={"limit": "2"}).json()
    operator.delete(f"{tokens}/aa").raise_for_status()
    rest = operator.get(tokens, params={"cursor": first["next_cursor"]}).json()
    assert [one["name"] for one in rest["tokens"]] == made[2:] and rest["next_cursor"] is None


def test_every_date_is_iso_8601_in_utc(proxy: Stack, operator: httpx.Client) -> None:
    key = operator.post("/v1/admin/tenants/acme/keys", json={}).json()
    with proxy.client(key["key"]) as backend:
        backend.get("/v1/session").raise_for_status()
    with proxy.client() as client:
        create(proxy, client)
        own = client.get(JOBS).json()["jobs"][0]
    listed = operator.get("/v1/admin/jobs", params={"tenant": "acme", "limit": "1"}).json()["jobs"][0]
    for text in (key["created_at"], own["submitted_at"], listed["submitted_at"]):
        moment = datetime.fromisoformat(text)
        assert moment.utcoffset() is not None and moment.utcoffset().total_seconds() == 0  # type: ignore[union-attr]
    assert key["last_used_at"] is None


#: Names of users that take the most bytes, or are not printable to Python.
NAMES = ["ж" * 200, "😀" * 200, '"\\' * 100, "👨\u200d👩\u200d👧", "a\u00a0b", "a\x85b"]


def test_every_name_of_a_user_can_end_a_page(proxy: Stack, operator: httpx.Client) -> None:
    for name in NAMES:
        with proxy.client(proxy.token(name, tenant="globex")) as user:
            user.post(f"/fal/run/{SMALL}", json=asking("?")).raise_for_status()
        override = {"plan": "acme", "until": "2099-01-01"}
        path = f"/v1/admin/tenants/globex/overrides/{quote(name, safe='')}"
        operator.put(path, json=override).raise_for_status()
    used = {"tenant": "globex", "group_by": "subject", "limit": "1"}
    for path, what, query in (
        ("/v1/admin/usage", "usage", used),
        ("/v1/admin/tenants/globex/overrides", "overrides", {"limit": "1"}),
    ):
        pages = read_pages(operator, path, what, **query)
        assert set(NAMES) <= {one["subject"] for (one,) in pages}, path


def test_a_cursor_holds_no_control_characters(operator: httpx.Client) -> None:
    for name in ("a\0b", "a\nb", "\x7f"):
        cursor = base64.urlsafe_b64encode(json.dumps([name]).encode()).rstrip(b"=").decode()
        query = {"tenant": "globex", "group_by": "subject", "cursor": cursor}
        assert_refused_with(operator.get("/v1/admin/usage", params=query), 400, "bad_request")


@pytest.mark.parametrize("listing", ["audit", "alerts", "jobs", "usage"])
def test_a_listing_of_a_tenant_that_there_is_not_is_no_empty_page(operator: httpx.Client, listing: str) -> None:
    assert operator.get(f"/v1/admin/{listing}?tenant=acme").status_code == 200
    answer = operator.get(f"/v1/admin/{listing}?tenant=nobodys")
    assert_refused_with(answer, 404, "not_found")
    assert "There is no such tenant" in answer.json()["detail"]
