"""A proxy whose plans let small files through, and callers that upload to it in every way that a client knows."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.limits.retries import HOUR
from tests.support.limited import Booked, account, limited_proxy, per, plan
from tests.support.sandbox import Record, SandboxControl
from tests.support.stack import Stack
from tests.support.waiting import wait_until

MOST = 100_000
PLANS: dict[str, dict[str, Any]] = {
    "acme": plan(quotas=[per("tenant", "upload_bytes", 10**12)], uploads={"max_bytes": MOST}),
    "frugal": plan(uploads={"max_bytes": MOST, "bytes_per_day": 1000, "expire_seconds": 3600}),
    "lax": plan(uploads={"content_types": ["image/png", "text/plain", "application/octet-stream"]}),
    "large": plan(uploads={"max_bytes": 2**25}),
    "kept": plan(uploads={"expire_seconds": None}),
    "slow": plan(poll_limits={"session": "3/minute"}),
}
OWNERS = {"acme": {"allowed_origins": ["https://app.acme.example"]}}
PNG = {"content-type": "image/png"}


class Uploads:
    """Clients, slots and counters of one proxy."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        self.stack = stack
        self.folder = folder
        self.sandbox = stack.sandbox
        #: Without any credential.
        self.http = stack.client("")

    def client(self, subject: str = "alice", tenant: str = "acme") -> httpx.Client:
        return self.stack.client(self.stack.token(subject, tenant=tenant, ttl_seconds=10**6))

    def slot(self, subject: str = "alice", tenant: str = "acme", *, in_parts: bool = False, **more: Any) -> Slot:
        kind = "initiate-multipart" if in_parts else "initiate"
        wanted = {"content_type": "image/png", "file_name": "a.png", **more}
        with self.client(subject, tenant) as client:
            answer = client.post(f"/fal/rest/storage/upload/{kind}", json=wanted)
        assert answer.status_code == 200, answer.text
        self.sandbox.forget()
        return Slot(self, **answer.json())

    def token(self, subject: str = "alice", tenant: str = "acme") -> dict[str, str]:
        """The headers of the Python client, with a token for uploads."""
        with self.client(subject, tenant) as client:
            answer = client.post("/fal/rest/storage/auth/token?storage_type=fal-cdn-v3", json={})
        assert answer.status_code == 200, answer.text
        self.sandbox.forget()
        return {"authorization": f"{answer.json()['token_type']} {answer.json()['token']}"}

    def booked(self, tenant: str = "acme", subject: str = "") -> Booked:
        return account(self.folder, tenant, "upload_bytes", subject)

    def has(self, url: str, content: bytes) -> bool:
        """Whether fal gives out these bytes as that picture."""
        back = httpx.get(url, trust_env=False, verify=False, timeout=60)
        return (back.content, back.headers["content-type"]) == (content, "image/png")

    def at_files(self) -> list[Record]:
        """What reached fal's file store."""
        return [record for record in self.sandbox.requests() if record["host"] == "cdn"]

    def life_ends(self) -> float:
        """When the last of the reservations expires, if it is not renewed."""
        with contextlib.closing(sqlite3.connect(self.folder / "proxy.db", timeout=30)) as database:
            (found,) = database.execute("SELECT max(expires_at) FROM jobs WHERE state = 'reserved'").fetchone()
        return float(found)

    def until_idle(self, tenant: str = "acme") -> None:
        """Wait until nothing is reserved: the proxy notices that a caller has left when it reads or writes."""
        wait_until(lambda: self.booked(tenant).reserved == 0, "a reservation stays")


class Slot:
    def __init__(self, uploads: Uploads, file_url: str, upload_url: str) -> None:
        self.file_url, self.upload_url = file_url, upload_url
        self._uploads = uploads

    def put(self, content: Any, **headers: str) -> httpx.Response:
        return self._uploads.http.put(self.upload_url, content=content, headers={**PNG, **headers})

    def part(self, number: object, content: Any, **headers: str) -> httpx.Response:
        return self._uploads.http.put(f"{self.upload_url}/{number}", content=content, headers=headers)

    def parts(self, *contents: bytes) -> list[dict[str, Any]]:
        answers = [self.part(number, content) for number, content in enumerate(contents, 1)]
        assert {answer.status_code for answer in answers} == {200}
        return [answer.json() for answer in answers]

    def complete(self, parts: Any, **headers: str) -> httpx.Response:
        return self._uploads.http.post(f"{self.upload_url}/complete", json={"parts": parts}, headers=headers)


@pytest.fixture(scope="module")
def shared_uploads(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Uploads]:
    folder = tmp_path_factory.mktemp("uploads")
    with limited_proxy(shared_sandbox, folder, PLANS, tenants=OWNERS) as stack:
        uploads = Uploads(stack, folder)
        yield uploads
        uploads.http.close()


@pytest.fixture
def uploads(shared_uploads: Uploads, sandbox: SandboxControl) -> Uploads:
    # Reservations of uploads that the previous test broke off are released first.
    shared_uploads.stack.clock.advance(HOUR)
    return shared_uploads
