"""A clock that was ahead makes sessions that seem younger than they are; a revocation of their user ends them too."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from proxy.auth.revocations import revoke_by_name
from proxy.stores.sql import SqlStores
from tests.support.audit_log import AUTHOR
from tests.support.images import png
from tests.support.limited import assert_refused_with, limited_proxy, operating, plan
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack

AHEAD = 3600
PAGE = "https://app.acme.example"
PLANS = {"acme": plan(session_ttl_seconds=900)}
TENANTS = {"acme": {"allowed_origins": [PAGE], "guests": {"enabled": True, "per_address": None, "share": 1.0}}}
SESSIONS, SLOTS = "/v1/sessions", "/fal/rest/storage/upload/initiate"
PICTURE = {"content_type": "image/png", "file_name": "a.png"}
#: A token and its subject.
Minted = tuple[str, str]


@pytest.fixture(scope="module")
def stack(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with limited_proxy(shared_sandbox, tmp_path_factory.mktemp("steps"), PLANS, tenants=TENANTS) as stack:
        stack.tenant_key()
        yield stack


@pytest.fixture
def proxy(stack: Stack, sandbox: SandboxControl) -> Stack:
    return stack


@contextmanager
def clock_ahead(proxy: Stack) -> Iterator[None]:
    proxy.clock.advance(AHEAD)
    yield
    proxy.clock.advance(-AHEAD)


def mint_by_key(proxy: Stack, subject: str = "alice") -> Minted:
    with proxy.client(proxy.tenant_key()) as backend:
        answer = backend.post(SESSIONS, json={"subject": subject}).raise_for_status().json()
    return answer["token"], subject


def mint_by_operator(proxy: Stack, subject: str = "bob") -> Minted:
    with operating(proxy) as operator:
        form = {"tenant": "acme", "subject": subject}
        return operator.post("/v1/admin/sessions", json=form).raise_for_status().json()["token"], subject


def renew(proxy: Stack) -> Minted:
    token, subject = mint_by_key(proxy, "carol")
    with proxy.client(token) as carol:
        return carol.post(f"{SESSIONS}/renew").raise_for_status().json()["token"], subject


def let_in_a_guest(proxy: Stack) -> Minted:
    with proxy.client("", headers={"origin": PAGE}) as page:
        answer = page.post(f"{SESSIONS}/guest").raise_for_status().json()
    return answer["token"], answer["subject"]


WAYS: dict[str, Callable[[Stack], Minted]] = {
    "key": mint_by_key,
    "operator": mint_by_operator,
    "renewal": renew,
    "guest": let_in_a_guest,
}


def revoke(proxy: Stack, subject: str) -> None:
    with operating(proxy) as operator:
        operator.request("DELETE", "/v1/admin/sessions", json={"tenant": "acme", "subject": subject}).raise_for_status()


def assert_revoked(proxy: Stack, token: str) -> None:
    with proxy.client(token) as caller:
        assert_refused_with(caller.get("/v1/session"), 401, "session_revoked")


def assert_counts(proxy: Stack, token: str) -> None:
    with proxy.client(token) as caller:
        caller.get("/v1/session").raise_for_status()


@pytest.mark.parametrize("way", WAYS)
def test_a_session_of_a_clock_that_was_ahead_ends_with_a_revocation(proxy: Stack, way: str) -> None:
    with clock_ahead(proxy):
        token, subject = WAYS[way](proxy)
    assert_counts(proxy, token)
    revoke(proxy, subject)
    assert_revoked(proxy, token)
    proxy.clock.advance(AHEAD)
    assert_revoked(proxy, token)
    assert_counts(proxy, WAYS[way](proxy)[0])


def test_an_upload_slot_of_a_clock_that_was_ahead_ends_with_a_revocation(proxy: Stack) -> None:
    with clock_ahead(proxy):
        slots = []
        for subject in ("dave", "erin"):
            with proxy.client(mint_by_key(proxy, subject)[0]) as caller:
                slots.append(caller.post(SLOTS, json=PICTURE).raise_for_status().json()["upload_url"])
    revoke(proxy, "dave")
    with proxy.client("") as sender:
        headers = {"content-type": "image/png"}
        revoked, other = (sender.put(slot, content=png(50), headers=headers) for slot in slots)
    assert (revoked.status_code, other.status_code) == (404, 200), (revoked.text, other.text)


@pytest.mark.parametrize("mint", [mint_by_key, mint_by_operator])
def test_a_session_that_is_minted_before_this_process_reads_a_revocation_counts(
    proxy: Stack, mint: Callable[[Stack, str], Minted]
) -> None:
    """Another process has revoked those of before, and this one is the user's next."""
    old, subject = mint(proxy, f"frank-{mint.__name__}")
    proxy.clock.advance(5)
    assert_counts(proxy, old)
    asyncio.run(revoke_elsewhere(proxy, "acme", subject))
    proxy.clock.advance(1)
    token, _ = mint(proxy, subject)
    proxy.clock.advance(5)
    assert_counts(proxy, token)
    assert_revoked(proxy, old)


async def revoke_elsewhere(proxy: Stack, tenant: str, subject: str) -> None:
    """As another process does: this one reads it within five seconds."""
    stores = SqlStores(proxy.settings.stores.database_url.reveal())
    try:
        revocation = revoke_by_name(tenant, None, subject, proxy.clock.now())
        await stores.directory.revoke(revocation, by=AUTHOR)
    finally:
        await stores.close()
