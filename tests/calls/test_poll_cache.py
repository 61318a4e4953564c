"""Polls that are asked again, byte for byte: answered from memory, and refused like the first one would be."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from proxy.calls.call import Call, Form
from proxy.calls.poll_cache import MOST, InstantPolls, PollCache, RepeatedPolls
from proxy.calls.polls import StatusQuery
from proxy.drain import Drain
from proxy.http.repetition import EXTENSION, Answer, WholeRequest
from proxy.jobs.updates import Log, Update
from proxy.limits.rates import RateLimiter
from proxy.stores.ledger import Job
from proxy.stores.memory import MemoryCounters
from proxy.targets import Kind, Target
from proxy.telemetry.metrics import Metrics
from proxy.tenants.caller import GRACE_SECONDS, Session
from proxy.tenants.directory import Snapshot
from tests.routes.jobs import HELD
from tests.server.echo import parse_answers
from tests.server.talk import talk
from tests.support.clock import MovableClock
from tests.support.limited import ADMIN_TOKEN, HOSTS, NEXT, PROTOCOL, Client, assert_refused_with, limited_proxy, plan
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack

PLANS = {
    "free": plan(),
    "rated": plan(poll_limits={"session": "6/minute"}),
    "by-address": plan(poll_limits={"ip": "6/minute", "session": None}),
}
JOB = Job("1", "submit", NEXT, "acme", "alice", submitted_at=0, expires_at=1e12, request_id="id", state="accepted")


@pytest.fixture(scope="module")
def shared(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with limited_proxy(shared_sandbox, tmp_path_factory.mktemp("repeats"), PLANS) as stack:
        yield stack


@pytest.fixture
def proxy(shared: Stack, sandbox: SandboxControl) -> Stack:
    return shared


def poll(client: Client, job: str, times: int = 3) -> httpx.Response:
    """The last of some polls whose bytes are the same; of a job that runs."""
    answers = [client.status(job) for _ in range(times)]
    assert {answer.status_code for answer in answers} == {202}, answers[-1].text
    return answers[-1]


# --- as a caller sees it


@pytest.mark.parametrize("surface", [HOSTS, PROTOCOL])
def test_each_poll_answers_with_the_state_of_its_moment(proxy: Stack, sandbox: SandboxControl, surface: str) -> None:
    with Client(proxy, proxy.token(tenant="free"), surface) as alice:
        job = alice.submitted("[[pace hold=IN_QUEUE]]")
        queued = poll(alice, job)
        assert queued.json()["status"] == "IN_QUEUE"
        sandbox.move_job(job, "IN_PROGRESS")
        while poll(alice, job, 1).json()["status"] != "IN_PROGRESS":
            pass
        sandbox.move_job(job, "COMPLETED")
        while (last := alice.status(job)).status_code == 202:
            pass
        assert last.json()["status"] == "COMPLETED" and alice.status(job).json() == last.json()
        ids = [alice.status(job).headers["x-request-id"] for _ in range(3)]
        assert len(set(ids)) == 3
    # Every header beside the state is in each answer.
    changing = {"x-request-id", "date", "content-length"}
    first, again = (
        {name: value for name, value in one.headers.items() if name not in changing} for one in (queued, last)
    )
    assert first == again and first["vary"] == "Origin"
    assert len([one for one in sandbox.requests() if one["path"].endswith("/status")]) == 0


@pytest.mark.parametrize("surface", [HOSTS, PROTOCOL])
def test_a_poll_in_one_packet_is_answered_like_one_in_pieces(proxy: Stack, surface: str) -> None:
    """The first is answered by its bytes when it comes again, the second is parsed each time."""
    token = proxy.token(tenant="rated")
    with Client(proxy, token, surface) as alice:
        job = alice.submitted(HELD)
        poll(alice, job, 1)
    path, target = f"/fal/queue/{NEXT}/requests/{job}/status", ""
    if surface == PROTOCOL:
        path, target = "/api/fal/proxy", f"X-Fal-Target-Url: https://queue.fal.run/{NEXT}/requests/{job}/status\r\n"
    head = f"GET {path} HTTP/1.1\r\nHost: x\r\n{target}Authorization: Bearer {token}\r\n"
    whole, last = f"{head}\r\n".encode(), f"{head}Connection: close\r\n\r\n".encode()
    port = int(proxy.url.rpartition(":")[2])
    (_, *again, _), (in_pieces, _) = (
        parse_answers(talk(port, *pieces)[0]) for pieces in ((whole, whole, last), (whole[:30], whole[30:], last))
    )
    changing = {"x-request-id", "date", "ratelimit"}
    (status, headers, body), plain = again[0], in_pieces
    assert (status, list(headers), body) == (plain[0], list(plain[1]), plain[2])
    assert {name for name in headers if headers[name] != plain[1][name]} <= changing
    left = [one["ratelimit"].split(";")[1] for one in (headers, plain[1])]
    assert left == ["r=3", "r=1"]


def test_each_poll_is_counted(proxy: Stack) -> None:
    with Client(proxy, proxy.token(tenant="rated")) as alice:
        job = alice.submitted(HELD)
        left = [poll(alice, job, 1).headers["ratelimit"] for _ in range(6)]
        assert [one.split(";")[1] for one in left] == [f"r={number}" for number in (5, 4, 3, 2, 1, 0)]
        assert_refused_with(alice.status(job), 429, "rate_limited", "session")
        assert_refused_with(alice.status(job), 429, "rate_limited", "session")
        proxy.clock.advance(60)
        assert poll(alice, job, 1).headers["ratelimit"].startswith('"session";r=5')


def test_each_poll_counts_for_its_address(proxy: Stack) -> None:
    with Client(proxy, proxy.token(tenant="by-address")) as here:
        job = here.submitted(HELD)
        poll(here, job, 6)
        assert_refused_with(here.status(job), 429, "rate_limited", "ip")
        sent = here.http.headers
        with httpx.Client(transport=httpx.HTTPTransport(local_address="127.0.0.2"), headers=sent) as there:
            url = f"{proxy.url}/fal/queue/{NEXT}/requests/{job}/status"
            assert [there.get(url).status_code for _ in range(7)] == [202] * 6 + [429]


def test_a_poll_with_another_session_is_not_taken_for_the_first(proxy: Stack) -> None:
    with Client(proxy, proxy.token(tenant="free")) as alice, Client(proxy, proxy.token("bob", tenant="free")) as bob:
        job = alice.submitted(HELD)
        poll(alice, job)
        assert_refused_with(bob.status(job), 404, "not_found")
        assert_refused_with(bob.status(job), 404, "not_found")
        poll(alice, job)


def test_a_session_is_refused_when_its_grace_period_ends(proxy: Stack) -> None:
    with Client(proxy, proxy.token(tenant="free", ttl_seconds=60)) as alice:
        job = alice.submitted(HELD)
        # The last poll before the end keeps the answer fresh: only the session is too old after it.
        proxy.clock.advance(60 + GRACE_SECONDS - 1)
        poll(alice, job)
        proxy.clock.advance(1)
        assert_refused_with(alice.status(job), 401, "session_expired")


def test_a_cookie_is_refused_from_a_foreign_page_each_time(proxy: Stack) -> None:
    """What was found out about a poll without an Origin holds for none that has one."""
    token = proxy.token(tenant="free")
    with Client(proxy, token) as alice, proxy.client("") as page:
        job = alice.submitted(HELD)
        poll(alice, job, 2)
        path, cookie = f"/fal/queue/{NEXT}/requests/{job}/status", {"cookie": proxy.cookie(token)}
        for _ in range(3):
            assert page.get(path, headers=cookie).status_code == 202
            for said in ({"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}):
                assert_refused_with(page.get(path, headers={**cookie, **said}), 403, "origin_not_allowed")


def test_a_session_that_was_revoked_is_refused(proxy: Stack) -> None:
    with Client(proxy, proxy.token(tenant="free")) as alice:
        job = alice.submitted(HELD)
        poll(alice, job)
        assert alice.http.delete("/v1/session").status_code == 204
        assert_refused_with(alice.status(job), 401, "session_revoked")


def test_a_tenants_own_key_may_poll(proxy: Stack) -> None:
    with Client(proxy, proxy.tenant_key("free")) as tenant:
        poll(tenant, tenant.submitted(HELD))


def test_an_endpoint_that_a_plan_has_lost_is_refused(proxy: Stack) -> None:
    with Client(proxy, proxy.token(tenant="free")) as alice, proxy.client(ADMIN_TOKEN) as admin:
        job = alice.submitted(HELD)
        poll(alice, job)
        for endpoints, then in ((["fal-ai/llavav15-13b"], 403), ([NEXT], 202)):
            changed = {"plans": {"free": plan(endpoints=endpoints)}, "tenants": [{"id": "free", "plan": "free"}]}
            admin.put("/v1/admin/tenants", json=changed).raise_for_status()
            assert alice.status(job).status_code == then


@pytest.mark.parametrize("header", ["origin", "x-request-id"])
def test_an_origin_and_an_id_are_answered_each_time(stack: Stack, header: str) -> None:
    sent = {"origin": stack.other_origin, "x-request-id": "a-request"}[header]
    with Client(stack, stack.token(), **{header: sent}) as alice:
        answer = poll(alice, alice.submitted(HELD))
    assert (answer.headers.get("access-control-allow-origin") == sent) is (header == "origin")
    assert (answer.headers["x-request-id"] == sent) is (header == "x-request-id")


# --- what is remembered


class Remembered:
    """Repeats before a route that answers every poll from memory, and counts them."""

    def __init__(self) -> None:
        self.clock = MovableClock()
        self.first = Update(NEXT, {"status": "IN_PROGRESS"}, Log(), 0)
        self.update: Update | None = self.first
        self.snapshot: Snapshot | None = Snapshot()
        self.asked = 0
        self.caller: Any = SimpleNamespace(
            terms=SimpleNamespace(polls=(("session", "1000/minute"),)),
            tenant=SimpleNamespace(id="acme"),
            subject="alice",
            session=Session("s", "acme", "alice", 0, self.clock.now() + 60),
        )
        directory: Any = SimpleNamespace(young=lambda: self.snapshot)
        limiter = RateLimiter(MemoryCounters(), self.clock)
        self.known = PollCache(directory, limiter, self.clock)
        hub: Any = SimpleNamespace(find_cached=lambda job: self.update)
        self.repeats = RepeatedPolls(self._route, self.known, hub, limiter)
        self.metrics, self.drain = Metrics(), Drain(1)
        self.instant = InstantPolls(self.known, hub, limiter, self.metrics, self.drain)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked += 1
        target = Target(Kind.STATUS, app=NEXT, request_id="id")
        call = Call(self.caller, target, Request(scope), Form(), {})
        self.known.remember(call, StatusQuery(JOB, False, Form()))

    async def get(self, path: str = "/", *, version: str = "1.1", **headers: str) -> dict[str, Any]:
        """The state of a request that was answered."""
        head = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        state = {"log_fields": {}, "shown": [(b"x-request-id", b"first"), (b"vary", b"Origin")]}
        scope: Scope = {
            "type": "http", "http_version": version, "method": "GET", "client": ("::1", 1), "headers": head,
            "state": state, "route": SimpleNamespace(path="/status"), "extensions": {EXTENSION: _whole(path, headers)},
        }  # fmt: skip

        async def nothing(_: Message | None = None) -> Any:
            return None

        await self.repeats(scope, nothing, nothing)
        return scope["state"]


def _whole(path: str = "/", headers: Mapping[str, str] | None = None) -> WholeRequest:
    return WholeRequest(f"GET {path} {headers or {}}".encode(), "::1")


def _headers_in(lines: bytes) -> dict[bytes, bytes]:
    """The headers that an answer has, each on a line behind the end of another."""
    nothing, *found = lines.split(b"\r\n")
    assert nothing == b""
    return dict(line.split(b": ", 1) for line in found)  # type: ignore[misc]


@pytest.fixture
def remembered() -> Remembered:
    return Remembered()


@pytest.mark.anyio
async def test_a_repeated_poll_is_answered_from_memory(remembered: Remembered) -> None:
    states = [await remembered.get() for _ in range(3)]
    assert remembered.asked == 1
    # Its line in the access log is at debug level only.
    assert [state.get("quiet") for state in states] == [None, True, True]
    # A field that is set on one request is not on the next.
    states[1]["log_fields"]["error_type"] = "rate_limited"
    assert states[2]["log_fields"] == {}


@pytest.mark.anyio
@pytest.mark.parametrize(
    "name", ["origin", "x_request_id", "content_length", "transfer_encoding", "expect", "upgrade", "connection"]
)
async def test_a_poll_with_headers_that_change_its_answer_is_not_remembered(remembered: Remembered, name: str) -> None:
    for _ in range(3):
        await remembered.get(**{name: "close"})
    assert remembered.asked == 3


@pytest.mark.anyio
async def test_a_poll_with_keep_alive_is_remembered(remembered: Remembered) -> None:
    for _ in range(2):
        await remembered.get(connection="keep-alive")
    assert remembered.asked == 1


@pytest.mark.anyio
async def test_a_poll_of_http_1_0_is_not_remembered(remembered: Remembered) -> None:
    for _ in range(2):
        await remembered.get(version="1.0")
    assert remembered.asked == 2


@pytest.mark.anyio
async def test_a_poll_that_cannot_be_answered_from_memory_reaches_the_route(remembered: Remembered) -> None:
    await remembered.get()
    update, remembered.update = remembered.update, None
    await remembered.get()
    assert remembered.asked == 2
    remembered.update = update
    await remembered.get()
    assert remembered.asked == 2


@pytest.mark.anyio
async def test_a_new_version_of_the_directory_makes_polls_reach_the_route(remembered: Remembered) -> None:
    await remembered.get()
    known, remembered.snapshot = remembered.snapshot, None
    for _ in range(2):
        await remembered.get()
    assert remembered.asked == 3, "the directory must be read first"
    remembered.snapshot = known
    await remembered.get()
    assert remembered.asked == 3
    remembered.snapshot = Snapshot(version=2)
    for _ in range(2):
        await remembered.get()
    assert remembered.asked == 4


@pytest.mark.anyio
async def test_the_number_of_remembered_polls_is_bounded(remembered: Remembered) -> None:
    for number in range(MOST + 1):
        await remembered.get(f"/{number}")
    assert len(remembered.known) == 1


# --- what is answered before it is parsed


@pytest.mark.anyio
async def test_a_known_poll_is_answered_at_once_and_counted(remembered: Remembered) -> None:
    assert remembered.instant.answer(_whole()) is None
    await remembered.get()
    first, second = (remembered.instant.answer(_whole()) for _ in range(2))
    assert isinstance(first, Answer) and isinstance(second, Answer)
    assert (first.status, first.body) == (202, b'{"status":"IN_PROGRESS"}')
    headers, later = _headers_in(first.lines), _headers_in(second.lines)
    assert headers[b"vary"] == b"Origin" and headers[b"content-length"] == b"24"
    assert b"first" != headers[b"x-request-id"] != later[b"x-request-id"]
    assert (headers[b"ratelimit"][:15], later[b"ratelimit"][:15]) == (b'"session";r=999', b'"session";r=998')
    sample = remembered.metrics.registry.get_sample_value
    assert sample("fal_proxy_requests_total", {"surface": "/status", "status": "202"}) == 2


@pytest.mark.anyio
async def test_a_known_poll_is_answered_with_the_state_of_its_moment(remembered: Remembered) -> None:
    """Its answer is kept for as long as the state is the same, and no longer."""
    await remembered.get()
    states: list[dict[str, Any]] = [{"status": "IN_PROGRESS"}, {"status": "IN_PROGRESS", "queue_position": 1}]
    for document, status in (*((state, 202) for state in states), ({"status": "COMPLETED"}, 200)):
        remembered.update = Update(NEXT, document, Log(), 0)
        for _ in range(2):
            answer = remembered.instant.answer(_whole())
            assert answer is not None and (answer.status, json.loads(answer.body)) == (status, document)
            assert int(_headers_in(answer.lines)[b"content-length"]) == len(answer.body)


@pytest.mark.anyio
async def test_a_known_poll_without_limits_says_nothing_of_them(remembered: Remembered) -> None:
    remembered.caller.terms.polls = ()
    await remembered.get()
    answer = remembered.instant.answer(_whole())
    assert answer is not None and not any(name.startswith(b"ratelimit") for name in _headers_in(answer.lines))


@pytest.mark.anyio
async def test_a_poll_that_has_to_wait_or_is_refused_is_not_answered_at_once(remembered: Remembered) -> None:
    await remembered.get()
    assert remembered.instant.answer(WholeRequest(_whole().data, "::2")) is None
    remembered.update = None
    assert remembered.instant.answer(_whole()) is None
    remembered.update, known, remembered.snapshot = remembered.first, remembered.snapshot, None
    assert remembered.instant.answer(_whole()) is None
    remembered.snapshot = known
    for _ in range(1000):
        assert remembered.instant.answer(_whole()) is not None
    assert remembered.instant.answer(_whole()) is None, "the window is full"
    remembered.clock.advance(61)
    assert remembered.instant.answer(_whole()) is None, "the session has expired"


@pytest.mark.anyio
async def test_a_process_that_stops_answers_nothing_at_once(remembered: Remembered) -> None:
    await remembered.get()
    assert remembered.instant.answer(_whole()) is not None
    remembered.drain.start()
    assert remembered.instant.answer(_whole()) is None


@pytest.mark.anyio
async def test_polls_that_have_a_line_in_the_log_are_not_answered_at_once(
    remembered: Remembered, caplog: pytest.LogCaptureFixture
) -> None:
    await remembered.get()
    with caplog.at_level(logging.DEBUG, "proxy.access"):
        assert remembered.instant.answer(_whole()) is None
    assert remembered.instant.answer(_whole()) is not None
