"""The sandbox's control routes, as tests use them."""

from __future__ import annotations

from typing import Any

import httpx

#: What the sandbox counts as calls to fal; its own control routes are not recorded.
Record = dict[str, Any]


class SandboxControl:
    """Reads the record of a running sandbox and sets its faults."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = httpx.Client(base_url=f"{url}/_sandbox", timeout=10, trust_env=False)

    def requests(self) -> list[Record]:
        """Every request received since the last `forget`, oldest first."""
        found: list[Record] = self._client.get("/requests").raise_for_status().json()
        return found

    def forget(self) -> None:
        self._client.delete("/requests").raise_for_status()

    def fault(self, fault: str, **more: Any) -> None:
        self._client.post("/faults", json={"fault": fault, **more}).raise_for_status()

    def clear_faults(self) -> None:
        self._client.delete("/faults").raise_for_status()

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
