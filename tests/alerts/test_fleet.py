"""Two processes and many callers at once: each threshold of a quota is one alert, and operators see it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx
import pytest
import yaml

from tests.limits.callers import ENDPOINT, Caller, http
from tests.limits.test_exactness import lasting_window
from tests.server.commands import PLAINLY, Commands, serving
from tests.support.databases import PostgresDatabases
from tests.support.limited import ADMIN_TOKEN
from tests.support.redis import Redis
from tests.support.sandbox import SandboxControl
from tests.support.scrape import scrape
from tests.support.secrets import SECRET
from tests.support.stack import UNLIMITED, sandbox_environ
from tests.support.waiting import wait_until_async

pytestmark = [pytest.mark.anyio, pytest.mark.tools]
CALLS, LIMIT = 200, 100
PLANS = {
    "plans": {
        "watched": {
            "endpoints": [ENDPOINT],
            **UNLIMITED,
            "quotas": [{"per": "tenant", "unit": "requests", "limit": LIMIT, "window": lasting_window()}],
            "alerts": [50, 80, 100],
        }
    },
    "tenants": [{"id": "acme", "plan": "watched"}, {"id": "globex", "plan": "watched"}],
}


async def test_two_processes_raise_each_threshold_once(
    sandbox: SandboxControl, tmp_path: Path, postgres_databases: PostgresDatabases, redis: Redis, commands: Commands
) -> None:
    (tmp_path / "plans.yaml").write_text(yaml.safe_dump(PLANS))
    environ = {
        **sandbox_environ(sandbox.url),
        "PROXY_SESSION_SECRETS": SECRET,
        "PROXY_ADMIN_TOKEN": ADMIN_TOKEN,
        "PROXY_CONFIG": str(tmp_path / "plans.yaml"),
        "PROXY_DATABASE_URL": postgres_databases.migrated(),
        "PROXY_REDIS_URL": redis.url,
    }
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
    with (
        serving("serve", environ=environ, folder=folders[0]) as one,
        serving("serve", environ=environ, folder=folders[1]) as other,
    ):
        urls = [one.url, other.url]
        async with http() as session:
            callers = [Caller(session, urls[number % 2], "acme", f"s-{number}") for number in range(CALLS)]
            answers = await asyncio.gather(*(caller.run("?") for caller in callers))
        assert sorted(answer.status for answer in answers) == [200] * LIMIT + [402] * (CALLS - LIMIT)

        async def are_raised() -> bool:
            return len(await asyncio.to_thread(list_alerts, urls[0])) == 3

        await wait_until_async(are_raised, "the alerts are not raised")
        # Both processes have looked again by then, and what they saw was there.
        await asyncio.sleep(2.5)
        raised = list_alerts(urls[1])
        assert sorted(alert["details"]["percent"] for alert in raised) == [50, 80, 100]
        assert {(alert["tenant"], alert["kind"], alert["subject"]) for alert in raised} == {
            ("acme", "quota.reached", None)
        }
        counted = [scrape(url).value("fal_proxy_alerts_total", kind="quota.reached") for url in urls]
        assert sum(counted) == 3
        pages = [list_alerts(urls[0], limit="2")]
        pages.append(list_alerts(urls[0], limit="2", cursor=next_cursor(urls[0], limit="2")))
        assert pages[0] + pages[1] == raised
        assert list_alerts(urls[0], tenant="globex") == [] and list_alerts(urls[0], tenant="acme") == raised
        printed = commands("alerts", "list", "--tenant", "acme", "--json", environ=environ, cwd=tmp_path)
        assert json.loads(printed.stdout) == raised


def ask(url: str, **query: str) -> httpx.Response:
    headers = {"authorization": f"Bearer {ADMIN_TOKEN}"}
    return httpx.get(f"{url}/v1/admin/alerts", params=query, headers=headers, **PLAINLY)


def list_alerts(url: str, **query: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = ask(url, **query).raise_for_status().json()["alerts"]
    return found


def next_cursor(url: str, **query: str) -> str:
    return str(ask(url, **query).json()["next_cursor"])
