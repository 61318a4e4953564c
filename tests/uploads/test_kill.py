"""kill -9 in the middle of uploads: a confirmed file is stored, others can be sent again, nothing stays reserved."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from proxy.limits.quotas import MILLION
from proxy.uploads.transfer import LIFE_SECONDS
from tests.limits.successor import start_successor
from tests.support.audit import AuditReport, read_report
from tests.support.images import png
from tests.support.sandbox import SandboxControl
from tests.support.waiting import wait_until
from tests.uploads.conftest import PNG
from tests.uploads.served import Served, begun, serving

#: CRASH_KILLS=60 makes it ten times as many.
KILLS, WORKERS = int(os.environ.get("CRASH_KILLS", "6")), 4


@pytest.fixture
def proxy(sandbox: SandboxControl, tmp_path: Path) -> Iterator[Served]:
    with serving(sandbox, tmp_path) as served:
        yield served


def books(proxy: Served) -> AuditReport:
    return asyncio.run(read_report(proxy.environ["PROXY_DATABASE_URL"]))


def wait_until_settled(proxy: Served) -> AuditReport:
    """Clean up as the next proxy does, and return the report."""

    async def look_after() -> None:
        async with start_successor(proxy.environ) as later:
            later.clock.advance(LIFE_SECONDS)
            await later.settle_everything()

    asyncio.run(look_after())
    found = books(proxy)
    found.check()
    return found


@pytest.mark.parametrize("tail", ["", "/1"])
def test_a_killed_proxy_leaves_a_slot_that_works(proxy: Served, tail: str) -> None:
    size = 5_000_000
    url = proxy.slot(in_parts=bool(tail))["upload_url"] + tail
    proxy.sandbox.forget()
    with begun(url, size, size - 1):
        wait_until(lambda: any(one["body_size"] > 10**6 for one in proxy.sandbox.requests()), "nothing flows")
        proxy.kill()
    assert books(proxy).total("upload_bytes").reserved == size * MILLION
    proxy.start()
    # At once, while the first attempt's reservation still exists.
    content = png(1000)
    answer = httpx.put(url, content=content, headers=PNG, trust_env=False, verify=False, timeout=60)
    assert answer.status_code == 200
    total = wait_until_settled(proxy).total("upload_bytes")
    assert (total.used, total.reserved) == (1000 * MILLION, 0)


@dataclass
class File:
    """One file to upload."""

    content: bytes
    place: dict[str, str] | None = None
    is_confirmed: bool = False

    def has_arrived(self) -> bool:
        assert self.place is not None
        back = httpx.head(self.place["file_url"], trust_env=False, timeout=60)
        etag = f'"{hashlib.sha256(self.content).hexdigest()[:32]}"'
        return back.status_code == 200 and back.headers["etag"] == etag


def test_kills_at_random_moments(proxy: Served) -> None:
    chance, files = random.Random(1), []
    for number in range(KILLS):
        stop, earlier = threading.Event(), len(files)
        workers = [threading.Thread(target=_upload, args=(proxy, files, stop)) for _ in range(WORKERS)]
        for worker in workers:
            worker.start()
        # A busy machine takes its time to begin: every other time, one upload is over before the rest is cut.
        is_begun = (lambda file: file.is_confirmed) if number % 2 else (lambda file: file.place is not None)
        wait_until(lambda: any(map(is_begun, files[earlier:])), "no upload begins")  # noqa: B023
        stop.wait(chance.uniform(0, 0.3))
        proxy.kill()
        stop.set()
        for worker in workers:
            worker.join()
        proxy.start()
    cut = [file for file in files if not file.is_confirmed and file.place is not None]
    assert cut and any(file.is_confirmed for file in files)
    for file in cut:
        assert file.place is not None
        answer = httpx.put(
            file.place["upload_url"], content=file.content, headers=PNG, trust_env=False, verify=False, timeout=60
        )
        # The upload may have finished already: then only the answer was lost.
        assert answer.status_code == 200 or "complete" in answer.json()["message"], answer.text
    placed = [file for file in files if file.place is not None]
    assert all(file.has_arrived() for file in placed)
    total = wait_until_settled(proxy).total("upload_bytes")
    assert total.reserved == 0
    # Each file counts once, and again where the kill came before the first attempt was recorded.
    assert len(placed) <= total.used / MILLION / len(files[0].content) <= len(placed) + KILLS * WORKERS


def _upload(proxy: Served, files: list[File], stop: threading.Event) -> None:
    while not stop.is_set():
        file = File(png(1_000_000 + len(files) % 7))
        files.append(file)
        with contextlib.suppress(httpx.TransportError, httpx.HTTPStatusError):
            file.place = proxy.slot()
            answer = httpx.put(
                file.place["upload_url"], content=file.content, headers=PNG, trust_env=False, verify=False, timeout=60
            )
            file.is_confirmed = answer.status_code == 200
