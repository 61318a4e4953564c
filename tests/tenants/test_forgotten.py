"""The operator forgets an end user."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import quote

import pytest

from proxy.stores.memory import MemoryCounters
from tests.server.commands import Commands
from tests.support.limited import Client, account, assert_refused_with, limited_proxy, look_after, operating, per, plan
from tests.support.sandbox import SandboxControl

PLANS = {"acme": plan(quotas=[per("subject", "requests", 3, "lifetime"), per("tenant", "requests", 50)])}
NAME = "zoë/of the tests@example.com"
SUBJECTS = "/v1/admin/tenants/acme/subjects"
HELD = "[[pace hold=IN_QUEUE]]"


def test_a_user_is_forgotten_and_comes_back_as_a_new_one(
    sandbox: SandboxControl, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with limited_proxy(sandbox, tmp_path, PLANS) as proxy, operating(proxy) as operator:
        with Client(proxy, proxy.token(NAME)) as zoe, Client(proxy, proxy.token("bob")) as bob:
            job = zoe.submitted(HELD)
            assert zoe.run().status_code == 200
            own = bob.submitted(HELD)
            before = account(tmp_path, "acme", "requests")
            caplog.clear()
            assert operator.delete(f"{SUBJECTS}/{quote(NAME, safe='')}").status_code == 204
            assert_refused_with(zoe.http.get("/v1/session"), 401, "session_revoked")
            assert_refused_with(zoe.status(job), 401, "session_revoked")
            assert bob.status(own).status_code == 202
        sandbox.move_job(job, "COMPLETED")
        proxy.clock.advance(1200)
        look_after(proxy, MemoryCounters())
        assert account(tmp_path, "acme", "requests").used == before.used + 1
        assert NAME not in caplog.text and quote(NAME) not in caplog.text
        listed = operator.get("/v1/admin/jobs", params={"tenant": "acme"})
        usage = operator.get("/v1/admin/usage", params={"tenant": "acme", "group_by": "subject"})
        assert usage.json()["total"]["calls"] == 2
        for answer in (listed, usage):
            assert NAME not in answer.text and " forgotten " in answer.text
        with Client(proxy, proxy.token(NAME)) as again:
            assert again.facts()["quotas"][0]["used"] == 0
            assert again.http.get("/v1/jobs").json()["jobs"] == []
            assert_refused_with(again.status(job), 404, "not_found")
            assert [again.run().status_code for _ in range(4)] == [200, 200, 200, 402]


def test_a_command_forgets_a_user(sandbox: SandboxControl, tmp_path: Path, commands: Commands) -> None:
    with limited_proxy(sandbox, tmp_path, PLANS) as proxy, operating(proxy) as operator:
        environ = {"PROXY_DATABASE_URL": proxy.settings.stores.database_url.reveal()}

        def run(*arguments: str) -> str:
            done = commands(*arguments, environ=environ, cwd=tmp_path)
            assert done.code == 0, done.stderr
            return done.stdout.strip()

        def list_used(*arguments: str) -> list[dict[str, object]]:
            found: list[dict[str, object]] = json.loads(run("usage", "--tenant", "acme", *arguments, "--json"))["usage"]
            return found

        with Client(proxy, proxy.token(NAME)) as zoe, Client(proxy, proxy.token("bob")) as bob:
            assert [client.run().status_code for client in (zoe, zoe, bob)] == [200] * 3
            assert [row["calls"] for row in list_used("--subject", NAME)] == [2]
            assert run("tenants", "forget", "acme", NAME) == "forgotten"
            proxy.clock.advance(5)
            assert_refused_with(zoe.http.get("/v1/session"), 401, "session_revoked")
            assert bob.http.get("/v1/session").status_code == 200
        assert list_used("--subject", NAME) == list_used("--subject", "") == []
        assert sorted(row["calls"] for row in list_used("--group-by", "subject")) == [1, 2]
        assert NAME not in operator.get("/v1/admin/usage", params={"tenant": "acme", "group_by": "subject"}).text


def test_an_unknown_user_or_tenant_is_not_found(sandbox: SandboxControl, tmp_path: Path) -> None:
    with limited_proxy(sandbox, tmp_path, PLANS) as proxy, operating(proxy) as operator:
        assert_refused_with(operator.delete("/v1/admin/tenants/nobody/subjects/alice"), 404, "not_found")
        for name in (" alice", "a\nb", "a" * 201):
            assert_refused_with(operator.delete(f"{SUBJECTS}/{quote(name)}"), 404, "not_found")
