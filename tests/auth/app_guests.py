"""What the user of an app asks a proxy before it has a session: a challenge, and a session for a proof."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import httpx

from tests.support.stack import Stack

#: Each request has an address of its own, so that no limit per address is reached.
_ADDRESSES = (f"198.{18 + number // 62_500}.{number // 250 % 250}.{number % 250 + 1}" for number in itertools.count())


@dataclass(frozen=True)
class AppGuest:
    """A guest whose proofs are of one kind."""

    proxy: Stack
    kind: str

    def ask(self, method: str, path: str, origin: str = "", **more: Any) -> httpx.Response:
        headers = {"x-forwarded-for": next(_ADDRESSES), **({"origin": origin} if origin else {})}
        return httpx.request(method, f"{self.proxy.url}{path}", headers=headers, trust_env=False, timeout=60, **more)

    def challenge(self, tenant: str = "app", origin: str = "") -> str:
        params = {"tenant": tenant, "kind": self.kind}
        answer = self.ask("GET", "/v1/sessions/challenge", origin, params=params).raise_for_status()
        found: str = answer.json()["challenge"]
        return found

    def give(self, value: str, tenant: str = "app", origin: str = "") -> httpx.Response:
        form = {"tenant": tenant, "proof": {"kind": self.kind, "value": value}}
        return self.ask("POST", "/v1/sessions/guest", origin, json=form)
