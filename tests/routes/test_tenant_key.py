"""What a tenant's key may do for its own users."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.routes.jobs import JOBS, created, watching
from tests.support.audit_log import read_entries
from tests.support.limited import NEXT, assert_refused_with, limited_proxy, plan
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack

POLLS = {"ip": None, "session": "40/minute", "subject": None, "tenant": None}
PLANS = {"acme": plan(), "globex": plan(), "tight": plan(poll_limits=POLLS)}


@pytest.fixture(scope="module")
def limited(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with limited_proxy(shared_sandbox, tmp_path_factory.mktemp("tenant-key"), PLANS) as stack:
        yield stack


@pytest.fixture
def proxy(limited: Stack, sandbox: SandboxControl) -> Stack:
    return limited


@pytest.fixture
def backend(proxy: Stack) -> Iterator[httpx.Client]:
    with proxy.client(proxy.tenant_key("acme")) as client:
        yield client


def sign_out(client: httpx.Client, **form: object) -> httpx.Response:
    return client.request("DELETE", "/v1/sessions", json=form)


def list_ids(client: httpx.Client, **query: str) -> list[str]:
    return [job["id"] for job in client.get(JOBS, params=query).raise_for_status().json()["jobs"]]


def entries_of(proxy: Stack, action: str) -> list[dict[str, object]]:
    found = read_entries(proxy.settings.stores.database_url.reveal())
    return [entry for entry in found if entry["action"] == action]


# Signing out


def test_all_sessions_of_a_user_end_and_no_others(proxy: Stack, backend: httpx.Client) -> None:
    first, second = (backend.post("/v1/sessions", json={"subject": "alice"}).json()["token"] for _ in range(2))
    others = [proxy.token("bob", tenant="acme"), proxy.token("alice", tenant="globex")]
    with proxy.client(first) as alice, watching(alice, created(alice)) as stream:
        next(stream)
        assert sign_out(backend, subject="alice").status_code == 204
        # The user's open stream ends too.
        list(stream)
    for token in (first, second):
        with proxy.client(token) as client:
            assert_refused_with(client.get("/v1/session"), 401, "session_revoked")
            assert_refused_with(client.post("/v1/sessions/renew"), 401, "session_revoked")
    for token in others:
        with proxy.client(token) as client:
            assert client.get("/v1/session").status_code == 200
    proxy.clock.advance(1)
    with proxy.client(backend.post("/v1/sessions", json={"subject": "alice"}).json()["token"]) as alice:
        assert alice.get("/v1/session").status_code == 200
    assert backend.get("/v1/session").status_code == 200, "the key itself stays"


def test_a_sign_out_counts_in_every_process(
    proxy: Stack, backend: httpx.Client, sandbox: SandboxControl, tmp_path: Path
) -> None:
    same = {"PROXY_DATABASE_URL": proxy.settings.stores.database_url.reveal()}
    with (
        limited_proxy(sandbox, tmp_path, PLANS, environ=same, clock=proxy.clock) as other,
        other.client(proxy.token("everywhere", tenant="acme")) as user,
    ):
        assert user.get("/v1/session").status_code == 200
        assert sign_out(backend, subject="everywhere").status_code == 204
        proxy.clock.advance(5)
        assert_refused_with(user.get("/v1/session"), 401, "session_revoked")


def test_a_sign_out_is_in_the_audit_log_under_the_key(proxy: Stack, backend: httpx.Client) -> None:
    before = len(entries_of(proxy, "session.revoke"))
    assert sign_out(backend, subject="audited").status_code == 204
    (entry,) = entries_of(proxy, "session.revoke")[before:]
    assert str(entry["by"]).startswith("key:") and (entry["tenant"], entry["target"]) == ("acme", "")
    assert proxy.tenant_key("acme").split("_", 2)[2] not in repr(entry) and "audited" not in repr(entry["by"])


def test_only_a_tenant_key_signs_users_out(proxy: Stack) -> None:
    victim = proxy.token("victim", tenant="acme")
    with proxy.client(proxy.token("mallory", tenant="acme")) as mallory:
        for subject in ("victim", "mallory"):
            assert_refused_with(sign_out(mallory, subject=subject), 403, "not_allowed")
    with proxy.client("") as stranger:
        assert_refused_with(sign_out(stranger, subject="victim"), 401, "unauthenticated")
    with proxy.client(victim) as client:
        assert client.get("/v1/session").status_code == 200


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"subject": ""},
        {"subject": " a"},
        {"subject": "a\x00"},
        {"subject": "a" * 201},
        {"subject": None},
        {"subject": "a", "tenant": "globex"},
        {"session_id": "abc"},
    ],
)
def test_a_form_that_names_no_user_is_refused(backend: httpx.Client, form: dict[str, object]) -> None:
    assert_refused_with(sign_out(backend, **form), 400, "bad_request")


def test_sign_outs_are_limited(proxy: Stack) -> None:
    with proxy.client(proxy.tenant_key("tight")) as backend:
        statuses = [sign_out(backend, subject="alice").status_code for _ in range(40)]
        assert set(statuses) == {204}
        assert_refused_with(sign_out(backend, subject="alice"), 429, "rate_limited", "session")


# Jobs


def test_a_tenant_key_lists_the_jobs_of_one_of_its_users(proxy: Stack, backend: httpx.Client) -> None:
    with (
        proxy.client(proxy.token("carol", tenant="acme")) as carol,
        proxy.client(proxy.token("dave", tenant="acme")) as dave,
        proxy.client(proxy.token("carol", tenant="globex")) as foreign,
    ):
        proxy.clock.advance(1)
        first = created(carol)
        created(dave)
        created(foreign)
        proxy.clock.advance(1)
        second, own = created(carol), created(backend)
    assert list_ids(backend, subject="carol") == [second, first]
    page = backend.get(JOBS, params={"subject": "carol", "limit": "1"}).json()
    assert list_ids(backend, subject="carol", cursor=page["next_cursor"]) == [first]
    assert list_ids(backend, subject="carol", endpoint="fal-ai/llavav15-13b") == []
    assert list_ids(backend) == list_ids(backend, subject="") == [own], "the tenant's own, as before"
    assert list_ids(backend, subject="unseen") == []
    assert_refused_with(backend.get(JOBS, params={"subject": "a\x00"}), 400, "bad_request")


def test_a_session_lists_no_subject(proxy: Stack) -> None:
    with proxy.client(proxy.token("erin", tenant="acme")) as erin:
        for subject in ("erin", "carol", ""):
            assert_refused_with(erin.get(JOBS, params={"subject": subject}), 403, "not_allowed")


def test_a_tenant_key_cancels_a_job_of_one_of_its_users(proxy: Stack, backend: httpx.Client) -> None:
    before = len(entries_of(proxy, "job.cancel"))
    with proxy.client(proxy.token("frank", tenant="acme")) as frank:
        job = created(frank)
        assert backend.delete(f"{JOBS}/{job}").status_code == 202
        assert frank.get(f"{JOBS}/{job}/result").status_code == 499
        assert backend.delete(f"{JOBS}/{job}").json() == {"status": "ALREADY_COMPLETED"}
    sent = [one["path"] for one in proxy.sandbox.requests() if one["path"].endswith("/cancel")]
    assert len(sent) == 2 and set(sent) == {f"/{NEXT}/requests/{job}/cancel"}
    entries = entries_of(proxy, "job.cancel")[before:]
    assert len(entries) == 2
    assert all(str(entry["by"]).startswith("key:") and entry["tenant"] == "acme" for entry in entries)


def test_a_tenant_key_still_cancels_its_own_job(proxy: Stack, backend: httpx.Client) -> None:
    before = len(entries_of(proxy, "job.cancel"))
    assert backend.delete(f"{JOBS}/{created(backend)}").status_code == 202
    assert len(entries_of(proxy, "job.cancel")) == before, "it is an ordinary call, not an entry of the audit log"


def test_foreign_and_unknown_jobs_are_not_found(proxy: Stack, backend: httpx.Client) -> None:
    with (
        proxy.client(proxy.token("grace", tenant="globex")) as grace,
        proxy.client(proxy.token("heidi", tenant="acme")) as heidi,
    ):
        foreign, users = created(grace), created(heidi)
        answers = [backend.delete(f"{JOBS}/{id_}") for id_ in (foreign, "no-such-job")]
        bodies = [assert_refused_with(answer, 404, "not_found") for answer in answers]
        assert bodies[0] | {"request_id": ""} == bodies[1] | {"request_id": ""}
        # A user cannot cancel another's job, and the key can read neither.
        with proxy.client(proxy.token("ivan", tenant="acme")) as ivan:
            assert_refused_with(ivan.delete(f"{JOBS}/{users}"), 404, "not_found")
        for path in ("", "/result", "/events"):
            assert_refused_with(backend.get(f"{JOBS}/{users}{path}"), 404, "not_found")
        assert not [one for one in proxy.sandbox.requests() if one["path"].endswith("/cancel")]
        assert grace.get(f"{JOBS}/{foreign}").json()["status"] == "IN_QUEUE"
        for id_, client in ((foreign, grace), (users, heidi)):
            assert client.delete(f"{JOBS}/{id_}").status_code == 202


def test_cancellations_for_users_are_limited(proxy: Stack) -> None:
    with (
        proxy.client(proxy.tenant_key("tight")) as backend,
        proxy.client(proxy.token("judy", tenant="tight")) as judy,
    ):
        job = created(judy)
        # The window of the tests before has passed.
        proxy.clock.advance(61)
        statuses = [backend.delete(f"{JOBS}/{job}").status_code for _ in range(41)]
    assert statuses[-1] == 429 and set(statuses[:40]) <= {200, 202, 400}
