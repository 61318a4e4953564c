"""The sandbox's control routes, as tests use them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import httpx

from proxy.sandbox.app import create_sandbox
from tests.support.servers import running

#: What the sandbox counts as calls to fal; its own control routes are not recorded.
Record = dict[str, Any]
_STATES = ("status", "status/stream")


class SandboxControl:
    """Reads the record of a running sandbox and sets its faults.

    A proxy that tests share follows a job for a while after the last who asked for it, which may be after the test. So
    what is asked about the states of an earlier test's jobs is left out of the record.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._followed: set[str] = set()
        self._earlier: set[str] = set()
        self._began_at = 0.0
        self._has_faults = False
        self._client = httpx.Client(base_url=f"{url}/_sandbox", timeout=60, trust_env=False, verify=False)

    def requests(self) -> list[Record]:
        """Every request received since the last `forget`, oldest first."""
        found: list[Record] = self._client.get("/requests").raise_for_status().json()
        self._followed |= {job for job, what in map(_target_of, found) if what == "status/stream"}
        asked_about = {job for job, what in map(_target_of, found) if what in _STATES}
        if not asked_about <= self._earlier:
            # Also one that the proxy had not begun to follow when this test began.
            self._earlier |= {job["id"] for job in self.jobs() if job["created"] < self._began_at}
        return [one for one in found if not (_target_of(one)[0] in self._earlier and _target_of(one)[1] in _STATES)]

    def forget(self) -> None:
        self.requests()
        self._client.delete("/requests").raise_for_status()

    def begin(self) -> None:
        """Forget what an earlier test did, and what it still causes."""
        self.forget()
        self._earlier |= self._followed
        self._began_at = time.time()

    def fault(self, fault: str, **more: Any) -> None:
        self._has_faults = True
        self._client.post("/faults", json={"fault": fault, **more}).raise_for_status()

    def clear_faults(self) -> None:
        if self._has_faults:
            self._client.delete("/faults").raise_for_status()
            self._has_faults = False

    def jobs(self) -> list[Record]:
        """Every job there is, queued or direct, oldest first."""
        found: list[Record] = self._client.get("/jobs").raise_for_status().json()
        return found

    def move_job(self, request_id: str, state: str) -> None:
        self._client.post(f"/jobs/{request_id}", json={"state": state}).raise_for_status()

    def pace(self, **pace: float) -> None:
        self._client.post("/pace", json=pace).raise_for_status()

    def close(self) -> None:
        self._client.close()


def _target_of(request: Record) -> tuple[str, str]:
    """The id of the job that a request is about, and what it asks of it."""
    job, _, what = request["path"].partition("/requests/")[2].partition("/")
    return job, what if request["method"] == "GET" else ""


@contextlib.contextmanager
def running_sandbox() -> Iterator[SandboxControl]:
    """A sandbox of its own on a real server."""
    with running(create_sandbox()) as url:
        control = SandboxControl(url)
        yield control
        control.close()
