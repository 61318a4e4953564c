"""Quotas `per: address`: all guests of one address together, however many sessions they get."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from proxy.auth.sessions import Sessions, new_guest_name
from proxy.stores.ledger import ADDRESS_PREFIX
from tests.support.images import png
from tests.support.limited import NEXT, Client, asking, assert_refused_with, limited_proxy, per, plan, posts
from tests.support.sandbox import SandboxControl
from tests.support.stack import TTL_SECONDS, Stack

ORIGIN = "https://app.acme.example"
DAY = 86_400
ALLOWED = 20
BELIEVING = {"proxy_headers": True, "forwarded_allow_ips": ["127.0.0.0/8"]}
VISITORS = [per("address", "requests", ALLOWED), per("address", "upload_bytes", 300)]
PLANS = {"acme": plan(), "visitors": plan(quotas=VISITORS)}
GUESTS = {"enabled": True, "plan": "visitors", "per_address": None, "share": 1.0}
TENANTS = {"acme": {"allowed_origins": [ORIGIN], "guests": GUESTS}}


@contextlib.contextmanager
def served(sandbox: SandboxControl, folder: Path, **more: Any) -> Iterator[Stack]:
    with limited_proxy(sandbox, folder, PLANS, tenants=TENANTS, **{"server": BELIEVING, **more}) as stack:
        yield stack


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("addresses")


@pytest.fixture(scope="module")
def limited(shared_sandbox: SandboxControl, folder: Path) -> Iterator[Stack]:
    with served(shared_sandbox, folder) as stack:
        yield stack


@pytest.fixture
def proxy(limited: Stack, sandbox: SandboxControl) -> Stack:
    # A window of its own for each test.
    limited.clock.advance(DAY)
    return limited


@pytest.fixture
def open_() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def guest_token(proxy: Stack) -> str:
    """A guest's session, as another process of the same deployment may have minted it."""
    sessions = Sessions(proxy.settings.sessions.secrets, proxy.clock)
    return sessions.mint("acme", new_guest_name(), TTL_SECONDS, guest=True)[0]


def guest(proxy: Stack, address: str) -> Client:
    return Client(proxy, guest_token(proxy), **{"x-forwarded-for": address})


def quotas_of(client: Client) -> dict[tuple[str, str], dict[str, Any]]:
    return {(one["per"], one["unit"]): one for one in client.facts()["quotas"]}


class Flood:
    """A script that asks for guest sessions with an Origin that it made up, and makes calls with all it gets."""

    def __init__(self, proxy: Stack, session: aiohttp.ClientSession) -> None:
        self._proxy = proxy
        self._session = session
        self.tokens: list[tuple[str, str]] = []
        self.answers: Counter[tuple[str, int]] = Counter()

    async def mint(self, address: str) -> None:
        headers = {"origin": ORIGIN, "x-forwarded-for": address}
        async with self._session.post(f"{self._proxy.url}/v1/sessions/guest", headers=headers) as answer:
            self.answers["mint", answer.status] += 1
            if answer.status == 201:
                self.tokens.append(((await answer.json())["token"], address))

    async def call(self, token: str, address: str) -> None:
        headers = {"authorization": f"Bearer {token}", "x-forwarded-for": address}
        url = f"{self._proxy.url}/fal/run/{NEXT}"
        async with self._session.post(url, json=asking("?"), headers=headers) as answer:
            self.answers["call", answer.status] += 1


async def flood(proxy: Stack, mints: list[str], others: list[str]) -> Flood:
    """Mint from these addresses, call with every session, and from `others` with sessions that were minted before."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=16)) as session:
        script = Flood(proxy, session)
        await asyncio.gather(*(script.mint(address) for address in mints))
        script.tokens += [(guest_token(proxy), address) for address in others]
        await asyncio.gather(*(script.call(*one) for one in script.tokens))
    return script


def test_a_flood_of_guests_costs_one_addresss_allowance_a_day(sandbox: SandboxControl, tmp_path: Path) -> None:
    """5,000 mints from one address and 200 from one IPv6 /64; the mints that the flood guard refuses are replaced by
    sessions from elsewhere, as several replicas and patience would give them."""
    one_address = ["192.0.2.7"] * 5000
    one_network = [f"2001:db8:0:7:{number:x}::{number + 1:x}" for number in range(200)]
    with served(sandbox, tmp_path) as stack:
        script = asyncio.run(flood(stack, one_address, one_address[:300]))
        minted = script.answers["mint", 201]
        assert minted + script.answers["mint", 429] == 5000 and minted >= 60
        assert script.answers["call", 200] == len(posts(sandbox)) == ALLOWED
        assert script.answers["call", 402] == minted + 300 - ALLOWED
        script = asyncio.run(flood(stack, one_network, one_network))
        assert script.answers["mint", 201] >= 60
        assert script.answers["call", 200] == ALLOWED and len(posts(sandbox)) == 2 * ALLOWED
        # Not one call more before the day is over, and as many again after it.
        stack.clock.set(_next_midnight(stack))
        script = asyncio.run(flood(stack, [], one_address[:100]))
        assert script.answers["call", 200] == ALLOWED and len(posts(sandbox)) == 3 * ALLOWED
    assert address_accounts(tmp_path) == {"requests": 3}


def _next_midnight(stack: Stack) -> str:
    with guest(stack, "192.0.2.7") as visitor:
        return str(quotas_of(visitor)["address", "requests"]["resets_at"])


def address_accounts(folder: Path) -> Counter[str]:
    """How many accounts of addresses the ledger has, by unit."""
    wanted = "SELECT unit FROM quota_usage WHERE substr(subject, 1, ?) = ?"
    with contextlib.closing(sqlite3.connect(folder / "proxy.db", timeout=30)) as database:
        return Counter(unit for (unit,) in database.execute(wanted, (len(ADDRESS_PREFIX), ADDRESS_PREFIX)))


def test_every_way_of_calling_counts_and_users_do_not(proxy: Stack, open_: ExitStack) -> None:
    one, other = (open_.enter_context(guest(proxy, "192.0.2.1")) for _ in range(2))
    alice = Client(proxy, proxy.token(tenant="acme"), **{"x-forwarded-for": "192.0.2.1"})
    open_.enter_context(alice)
    ways = [one.run, other.submit, lambda: one.call("POST", f"run/{NEXT}/stream", asking("?"))]
    assert [ways[number % 3]().status_code for number in range(ALLOWED)] == [200] * ALLOWED
    for way in ways:
        body = assert_refused_with(way(), 402, "quota_exceeded", "ip")
        assert body["detail"] == "The day's quota of requests of all guests of this address is used up: 0 left."
        assert 0 < body["retry_after"] <= DAY
    assert alice.run().status_code == 200 and alice.facts()["quotas"] == []
    with guest(proxy, "192.0.2.2") as stranger:
        assert stranger.run().status_code == 200


def test_a_guest_sees_only_what_its_own_address_has_left(proxy: Stack, folder: Path, open_: ExitStack) -> None:
    mapped, there = (open_.enter_context(guest(proxy, address)) for address in ("::ffff:192.0.2.9", "198.51.100.9"))
    here = open_.enter_context(guest(proxy, "192.0.2.9"))
    assert here.run().status_code == 200
    for client, left in ((here, ALLOWED - 1), (mapped, ALLOWED - 1), (there, ALLOWED)):
        answer = client.http.get("/v1/session")
        quota = next(one for one in answer.json()["quotas"] if one["unit"] == "requests")
        assert (quota["per"], quota["window"], quota["limit"], quota["left"]) == ("address", "day", ALLOWED, left)
        assert "192.0.2" not in answer.text and "198.51" not in answer.text
    with contextlib.closing(sqlite3.connect(folder / "proxy.db", timeout=30)) as database:
        assert "192.0.2.9" not in "".join(database.iterdump())


@pytest.mark.parametrize("server", [{"proxy_headers": False}, {**BELIEVING, "forwarded_allow_ips": ["10.0.0.0/8"]}])
def test_an_address_that_a_caller_wrote_itself_does_not_count(
    sandbox: SandboxControl, tmp_path: Path, server: dict[str, Any]
) -> None:
    with served(sandbox, tmp_path, server=server) as stack:
        script = asyncio.run(flood(stack, [], [f"192.0.2.{number}" for number in range(2 * ALLOWED)]))
    assert script.answers["call", 200] == len(posts(sandbox)) == ALLOWED


@pytest.mark.parametrize("way", ["slot", "native", "cdn"])
def test_bytes_count_for_the_address_that_sends_them(proxy: Stack, way: str) -> None:
    address = f"203.0.113.{len(way)}"
    with guest(proxy, address) as one, guest(proxy, address) as other:
        assert upload(one, 200, way).is_success
        assert_refused_with(upload(other, 101, way), 402, "quota_exceeded", "ip")
        assert upload(other, 100, way).is_success
        assert quotas_of(one)["address", "upload_bytes"]["used"] == 300


def upload(client: Client, size: int, way: str) -> Any:
    content, headers = png(size), {"content-type": "image/png"}
    if way == "native":
        return client.http.post("/v1/uploads", content=content, headers=headers)
    if way == "slot":
        wanted = {"content_type": "image/png", "file_name": "a.png"}
        slot = client.call("POST", "rest/storage/upload/initiate", wanted).json()["upload_url"]
        return client.http.put(slot, content=content, headers=headers)
    token = client.call("POST", "rest/storage/auth/token?storage_type=fal-cdn-v3", {}).json()
    headers["authorization"] = f"{token['token_type']} {token['token']}"
    return client.http.post(f"{token['base_url']}/files/upload", content=content, headers=headers)
