"""A deleted tenant leaves its usage records, and a new tenant of the same name inherits nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.stores.memory import MemoryCounters
from proxy.stores.removal import FormerTenant
from proxy.stores.sql import SqlStores
from tests.server.commands import Commands
from tests.support.audit_log import AUTHOR
from tests.support.images import png
from tests.support.limited import (
    NEXT,
    Client,
    account,
    asking,
    assert_refused_with,
    limited_proxy,
    look_after,
    operating,
    per,
    plan,
)
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack

QUOTAS = [per("subject", "requests", 5, "lifetime"), per("tenant", "requests", 50)]
PLANS = {"acme": plan(quotas=QUOTAS), "globex": plan(quotas=QUOTAS)}
AGAIN = {"plans": PLANS, "tenants": [{"id": "acme", "plan": "acme"}]}
TENANTS = "/v1/admin/tenants"
HELD = "[[pace hold=IN_QUEUE]]"
PICTURE = {"content_type": "image/png", "file_name": "a.png"}
NAMED = {"idempotency-key": "one-of-the-tests"}


def calls_of(operator: httpx.Client, name: str) -> int:
    report = operator.get("/v1/admin/usage", params={"tenant": name}).raise_for_status().json()
    found: int = report["total"]["calls"]
    return found


def delete(operator: httpx.Client, tenant: str = "acme") -> dict[str, Any]:
    answer = operator.delete(f"{TENANTS}/{tenant}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.mark.slow
def test_a_name_that_is_used_again_inherits_nothing(sandbox: SandboxControl, tmp_path: Path) -> None:
    with limited_proxy(sandbox, tmp_path, PLANS) as proxy, operating(proxy) as operator:
        session, key = proxy.token(ttl_seconds=10**6), proxy.tenant_key()
        with Client(proxy, session) as alice, proxy.client(proxy.token(tenant="globex")) as other:
            job = alice.submitted(HELD)
            for _ in range(3):
                assert alice.call("POST", f"run/{NEXT}", asking("?"), **NAMED).status_code == 200
            assert alice.call("POST", f"run/{NEXT}", asking("??")).status_code == 200
            slot = alice.http.post("/fal/rest/storage/upload/initiate", json=PICTURE).json()["upload_url"]
            other.post(f"/fal/run/{NEXT}", json=asking("?")).raise_for_status()

            records = delete(operator)["records"]
            assert_refused_with(operator.get(f"{TENANTS}/acme"), 404, "not_found")
            assert_refused_with(operator.get(f"{TENANTS}/acme/keys"), 404, "not_found")
            assert_refused_with(operator.delete(f"{TENANTS}/acme"), 404, "not_found")
            assert_refused_with(alice.http.get("/v1/session"), 401, "unauthenticated")
            assert_refused_with(alice.status(job), 401, "unauthenticated")

            assert other.get("/v1/session").status_code == 200

            # A job that still runs at fal is booked on the deleted tenant.
            assert calls_of(operator, records) == 2
            sandbox.move_job(job, "COMPLETED")
            proxy.clock.advance(3600)
            assert look_after(proxy, MemoryCounters()) == 1
            assert calls_of(operator, records) == 3
            assert account(tmp_path, "acme", "requests", "alice").used == 0

            assert operator.put(TENANTS, json=AGAIN).json() == {"changed": True}
            for old, code in ((session, "session_revoked"), (key, "unauthenticated")):
                with proxy.client(old) as client:
                    assert_refused_with(client.get("/v1/session"), 401, code)
            assert operator.get(f"{TENANTS}/acme/keys").json()["keys"] == []
            proxy.clock.advance(1)
            with Client(proxy, proxy.token()) as again, proxy.client("") as stranger:
                assert [quota["used"] for quota in again.facts()["quotas"]] == [0, 0]
                assert again.http.get("/v1/jobs").json()["jobs"] == []
                assert_refused_with(again.status(job), 404, "not_found")
                assert calls_of(operator, "acme") == 0
                first = again.call("POST", f"run/{NEXT}", asking("another"), **NAMED)
                assert first.status_code == 200 and "idempotency-replayed" not in first.headers
                answer = stranger.put(slot, content=png(50), headers={"content-type": "image/png"})
                assert_refused_with(answer, 404, "not_found")
            assert calls_of(operator, records) == 3 and calls_of(operator, "globex") == 1


def leave_behind(proxy: Stack, tenant: str) -> None:
    """Delete a tenant and stop in the middle, as a killed process does."""
    former = FormerTenant(f"{tenant}~0123456789abcdef", tenant, proxy.clock.now())
    change_database(proxy, lambda stores: stores.directory.delete_tenant(former, by=AUTHOR))
    proxy.clock.advance(5)


@pytest.mark.slow
def test_a_server_that_has_not_heard_of_a_deletion_gives_the_tenant_nothing(
    sandbox: SandboxControl, tmp_path: Path
) -> None:
    with limited_proxy(sandbox, tmp_path, PLANS) as proxy, operating(proxy) as operator:
        former = FormerTenant("acme~0123456789abcdef", "acme", proxy.clock.now())
        change_database(proxy, lambda stores: stores.directory.delete_tenant(former, by=AUTHOR))
        assert operator.get(f"{TENANTS}/acme").status_code == 200
        grant = {"unit": "requests", "amount": 5, "reason": "order 4711"}
        for method, path, body in (
            ("POST", "keys", {"name": "late"}),
            ("POST", "grants", grant),
            ("PUT", "overrides/alice", {"plan": "globex", "until": "2099-01-31"}),
        ):
            answer = operator.request(method, f"{TENANTS}/acme/{path}", json=body)
            assert "no such tenant" in assert_refused_with(answer, 404, "not_found")["message"]


def change_database(proxy: Stack, change: Callable[[SqlStores], Awaitable[object]]) -> None:
    """Change a proxy's database as another process does."""

    async def work() -> None:
        stores = SqlStores(proxy.settings.stores.database_url.reveal())
        assert await change(stores)
        await stores.close()

    asyncio.run(work())


@pytest.mark.slow
def test_a_deletion_that_was_interrupted_is_finished(sandbox: SandboxControl, tmp_path: Path) -> None:
    with limited_proxy(sandbox, tmp_path, PLANS) as proxy, operating(proxy) as operator:
        with Client(proxy, proxy.token()) as alice:
            assert alice.run().status_code == 200
            leave_behind(proxy, "acme")
            assert_refused_with(alice.http.get("/v1/session"), 401, "unauthenticated")
        # Until then the name is taken.
        answer = operator.put(TENANTS, json=AGAIN)
        assert "still being deleted" in assert_refused_with(answer, 503, "store_unavailable")["message"]
        assert delete(operator)["records"] == "acme~0123456789abcdef"
        assert calls_of(operator, "acme~0123456789abcdef") == 1
        assert operator.put(TENANTS, json=AGAIN).json() == {"changed": True}
        leave_behind(proxy, "globex")
    # A start applies a file with the name.
    with limited_proxy(sandbox, tmp_path, PLANS) as proxy, operating(proxy) as operator:
        assert operator.get(f"{TENANTS}/globex").status_code == 200


@pytest.mark.slow
def test_a_command_deletes_a_tenant(sandbox: SandboxControl, tmp_path: Path, commands: Commands) -> None:
    with limited_proxy(sandbox, tmp_path, PLANS) as proxy, proxy.client() as alice:
        environ = {"PROXY_DATABASE_URL": proxy.settings.stores.database_url.reveal()}
        assert alice.post(f"/fal/run/{NEXT}", json=asking("?")).status_code == 200
        done = commands("tenants", "delete", "acme", environ=environ, cwd=tmp_path)
        assert done.code == 0 and done.stdout.startswith("acme~"), done.stderr
        proxy.clock.advance(5)
        assert_refused_with(alice.get("/v1/session"), 401, "unauthenticated")
        records = done.stdout.strip()
        usage = commands("usage", "--tenant", records, "--from", "2001-01-01", environ=environ, cwd=tmp_path)
        assert usage.code == 0 and usage.stdout.splitlines()[-1].split()[:2] == ["total", "1"]
        again = commands("tenants", "delete", "acme", environ=environ, cwd=tmp_path)
        assert (again.code, again.stdout) == (1, "") and "there is no tenant acme" in again.stderr
