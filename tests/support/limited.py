"""A proxy whose limits are a test's own, and its callers as they see them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
import orjson
import yaml

from proxy.jobs.fal_queue import FalQueue
from proxy.jobs.reconciler import Reconciler
from proxy.jobs.settlement import Settlement
from proxy.limits.leases import Leases
from proxy.limits.quotas import Quotas
from proxy.stores.counters import Counters
from proxy.stores.sql import SqlStores
from proxy.tenants.plan_file import read_file
from proxy.upstream.client import Upstream
from proxy.upstream.transport import EngineTransport
from tests.support.images import PIXEL
from tests.support.sandbox import Record, SandboxControl
from tests.support.stack import TTL_SECONDS, UNLIMITED, Stack, proxy_in_front_of
from tests.support.waiting import wait_until

NEXT = "fal-ai/llava-next"
#: The one that reports how many tokens it wrote.
COUNTING = "fal-ai/llavav15-13b"
ADMIN_TOKEN = "an-admin-token-of-the-tests-with-more-than-32-bytes"

HOSTS, PROTOCOL = "hosts", "protocol"
T = TypeVar("T")
_FAL = {"run": "https://fal.run", "queue": "https://queue.fal.run", "rest": "https://rest.fal.ai"}


def plan(**limits: Any) -> dict[str, Any]:
    """A plan without any limit but those given."""
    return {"endpoints": [NEXT, COUNTING], "session_ttl_seconds": TTL_SECONDS, **UNLIMITED, **limits}


def per(subject_or_tenant: str, unit: str, limit: float, window: str = "day") -> dict[str, Any]:
    """A quota."""
    return {"per": subject_or_tenant, "unit": unit, "limit": limit, "window": window}


@contextlib.contextmanager
def limited_proxy(
    sandbox: SandboxControl,
    folder: Path,
    plans: Mapping[str, Mapping[str, Any]],
    *,
    tenants: Mapping[str, Mapping[str, Any]] | None = None,
    endpoints: list[dict[str, Any]] | None = None,
    environ: Mapping[str, str] | None = None,
    **more: Any,
) -> Iterator[Stack]:
    """A proxy with these plans, and for each a tenant of the same name; `tenants` adds fields to some of them."""
    facts = tenants or {}
    named = [{"id": name, "plan": name, **facts.get(name, {})} for name in plans]
    config = folder / "plans.yaml"
    config.write_text(yaml.safe_dump({"plans": dict(plans), "tenants": named, "endpoints": endpoints or []}))
    own = {"PROXY_CONFIG": str(config), "PROXY_ADMIN_TOKEN": ADMIN_TOKEN, **(environ or {})}
    with proxy_in_front_of(sandbox, folder, environ=own, **more) as stack:
        yield stack


def operating(stack: Stack) -> httpx.Client:
    """The operator of a limited proxy, with the admin token."""
    return stack.client(ADMIN_TOKEN)


class Client:
    """A caller, and what it can ask of the proxy; `surface` is the form in which it asks for fal's calls."""

    def __init__(self, stack: Stack, token: str, surface: str = HOSTS, **headers: str) -> None:
        self.stack = stack
        self.token = token
        self.http = stack.client(token, headers=headers)
        self._surface = surface

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def call(self, method: str, path: str, json: Any = None, **headers: str) -> httpx.Response:
        """`path` is that of the host form, such as `queue/fal-ai/llava-next`."""
        if self._surface == HOSTS:
            return self.http.request(method, f"/fal/{path}", json=json, headers=headers)
        host, _, rest = path.partition("/")
        target = {"x-fal-target-url": f"{_FAL[host]}/{rest}"}
        return self.http.request(method, "/api/fal/proxy", json=json, headers={**target, **headers})

    def run(self, prompt: str = "What is this?", endpoint: str = NEXT, **more: Any) -> httpx.Response:
        return self.call("POST", f"run/{endpoint}", asking(prompt, **more))

    def submit(self, prompt: str = "What is this?", endpoint: str = NEXT, **more: Any) -> httpx.Response:
        return self.call("POST", f"queue/{endpoint}", asking(prompt, **more))

    def submitted(self, prompt: str = "What is this?", endpoint: str = NEXT, **more: Any) -> str:
        """The id of a job that was let through."""
        answer = self.submit(prompt, endpoint, **more)
        assert answer.status_code == 200, answer.text
        id_: str = answer.json()["request_id"]
        return id_

    def status(self, job: str, endpoint: str = NEXT) -> httpx.Response:
        return self.call("GET", f"queue/{endpoint}/requests/{job}/status")

    def result(self, job: str, endpoint: str = NEXT) -> httpx.Response:
        return self.call("GET", f"queue/{endpoint}/requests/{job}")

    def cancel(self, job: str, endpoint: str = NEXT) -> httpx.Response:
        return self.call("PUT", f"queue/{endpoint}/requests/{job}/cancel")

    def facts(self) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get("/v1/session").raise_for_status().json()
        return found

    def slots(self) -> tuple[int, int]:
        """How many slots of the subject and of the tenant are taken."""
        taken = self.facts()["in_flight"]
        return taken["subject"]["used"], taken["tenant"]["used"]


def asking(prompt: str, **more: Any) -> dict[str, Any]:
    """A model's input."""
    return {"image_url": PIXEL, "prompt": prompt, **more}


def posts(sandbox: SandboxControl) -> list[Record]:
    """The calls that cost something: a reconciler that looks after jobs of other tests asks with GET alone."""
    return [record for record in sandbox.requests() if record["method"] == "POST"]


def assert_refused_with(answer: httpx.Response, status: int, code: str, scope: str | None = None) -> dict[str, Any]:
    """The body of a refusal, once its code, its scope and its header are those named."""
    body: dict[str, Any] = answer.json()
    assert (answer.status_code, body.get("error_type"), body.get("scope")) == (status, code, scope), answer.text
    assert answer.headers["x-fal-error-type"] == code
    assert answer.headers.get("retry-after") == (str(body["retry_after"]) if "retry_after" in body else None)
    return body


@dataclass(frozen=True)
class Booked:
    """What stands on one account, in whole units."""

    used: float
    reserved: float


NOTHING = Booked(0, 0)


def account(folder: Path, tenant: str, unit: str, subject: str = "") -> Booked:
    """All of a unit that the ledger's own table holds for a tenant, or for a subject; read beside the proxy."""
    wanted = "SELECT used, reserved FROM quota_usage WHERE tenant = ? AND unit = ? AND subject = ?"
    with contextlib.closing(sqlite3.connect(folder / "proxy.db", timeout=30)) as database:
        rows = database.execute(wanted, (tenant, unit, subject)).fetchall()
    return Booked(sum(used for used, _ in rows) / 1e6, sum(reserved for _, reserved in rows) / 1e6)


@contextlib.contextmanager
def meanwhile(work: Callable[[], T], sandbox: SandboxControl) -> Iterator[tuple[Future[T], str]]:
    """Do work in a thread; yields its future, and the sandbox's id of the call once fal works on it."""
    begun = _newcomers(sandbox)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        yield future, wait_until(begun, "the call did not reach the sandbox")[0]


@contextlib.contextmanager
def hanging_up(stack: Stack, token: str, path: str, json: Any, **headers: str) -> Iterator[str]:
    """A call in the host form whose caller hangs up at the end of the block; yields the sandbox's id of the call."""
    begun = _newcomers(stack.sandbox)
    body = orjson.dumps(json)
    named = {"host": "proxy", "authorization": f"Bearer {token}", "content-length": str(len(body)), **headers}
    lines = [f"POST /fal/{path} HTTP/1.1", *(f"{name}: {value}" for name, value in named.items())]
    with socket.create_connection(("127.0.0.1", urlsplit(stack.url).port or 0)) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        yield wait_until(begun, "the call did not reach the sandbox")[0]


def _newcomers(sandbox: SandboxControl) -> Callable[[], list[str]]:
    known = {job["id"] for job in sandbox.jobs()}
    return lambda: [job["id"] for job in sandbox.jobs() if job["id"] not in known]


def look_after(stack: Stack, counters: Counters) -> int:
    """Reconcile the jobs without watchers, as every process does at intervals; how many there were."""

    async def once() -> int:
        stores = SqlStores(stack.settings.stores.database_url.reveal())
        upstream = Upstream(stack.settings.fal, EngineTransport())
        _, catalog = read_file(stack.settings.config_path)
        quotas, leases = Quotas(stores.ledger, stack.clock), Leases(counters, stores.ledger, stack.clock)
        settlement = Settlement(quotas, leases, catalog, stack.clock)
        try:
            queue = FalQueue(upstream, settlement)
            return await Reconciler(stores.ledger, upstream, queue, settlement, leases, stack.clock).run_once()
        finally:
            await quotas.close()
            await upstream.close()
            await stores.close()

    return asyncio.run(once())
