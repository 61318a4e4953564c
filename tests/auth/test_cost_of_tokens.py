"""A call with a token that was verified costs at most 5 % more than one with a session, counted in bytecode."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from starlette.applications import Starlette

from proxy.app import create_app
from proxy.auth.sessions import Sessions
from proxy.settings import read
from proxy.tenants.plans import PlanFile
from tests.auth.providers import AUTH0
from tests.support.clock import MovableClock
from tests.support.images import PIXEL
from tests.support.limited import NEXT, plan
from tests.support.sandbox import SandboxControl
from tests.support.secrets import SECRET
from tests.support.stack import sandbox_environ

CALLS: dict[str, tuple[str, str, Any]] = {
    "the cheapest read": ("GET", "/v1/endpoints", None),
    "a submit": ("POST", f"/fal/queue/{NEXT}", {"image_url": PIXEL, "prompt": "?"}),
}


async def answer(app: Starlette, state: Mapping[str, Any], token: str, method: str, path: str, body: Any) -> int:
    content = b"" if body is None else json.dumps(body).encode()
    fields = {"host": "proxy", "authorization": f"Bearer {token}", "content-type": "application/json"}
    headers = [(name.encode(), value.encode()) for name, value in fields.items()]
    statuses = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": content, "more_body": False}

    async def send(message: Any) -> None:
        statuses.append(message.get("status"))

    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b""}
    peer = {"client": ("127.0.0.1", 1), "server": ("proxy", 80), "scheme": "http", "http_version": "1.1"}
    await app({**scope, **peer, "headers": headers, "state": dict(state), "root_path": ""}, receive, send)
    return int(statuses[0])


class Counter:
    """Counts the instructions that run in this thread."""

    def __init__(self) -> None:
        self.count = 0

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        frame.f_trace_opcodes = True
        self.count += event == "opcode"
        return self.trace


@pytest.mark.anyio
@pytest.mark.parametrize("call", CALLS)
async def test_a_known_token_costs_hardly_more_than_a_session(
    sandbox: SandboxControl, tmp_path: Path, call: str
) -> None:
    clock = MovableClock()
    environ = {"PROXY_SESSION_SECRETS": SECRET, "PROXY_DATABASE_URL": f"sqlite:///{tmp_path / 'proxy.db'}"}
    settings = read({**sandbox_environ(sandbox.url), **environ})
    identity = {"issuer": AUTH0.issuer, **AUTH0.accepts, "jwks": {"keys": [AUTH0.published()]}, "plans": None}
    tenants = [{"id": "acme", "plan": "free", "identity": [identity]}]
    file = PlanFile.model_validate({"plans": {"free": plan()}, "tenants": tenants})
    app = create_app(settings, clock=clock, plan_file=file, reconciles=False)
    session, _ = Sessions(settings.sessions.secrets, clock).mint("acme", AUTH0.subject, 3600)
    costs: dict[str, int] = {}
    async with app.router.lifespan_context(app) as state:
        for token in (session, AUTH0.token(clock.now())):
            for _ in range(5):
                counter, before = Counter(), sys.gettrace()
                sys.settrace(counter.trace)
                try:
                    status = await answer(app, state or {}, token, *CALLS[call])
                finally:
                    sys.settrace(before)
                assert status == 200
                # The first call is the one that verifies; other tasks run beside some.
                costs[token] = min(counter.count, costs.get(token, counter.count))
    of_session, of_token = costs.values()
    assert of_session < of_token < 1.05 * of_session
