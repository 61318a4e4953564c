"""ALTCHA's published widget in Chromium: it solves the proxy's challenge, and its proof gives a guest's session."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, expect
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse
from starlette.routing import Route

from tests.support.limited import NEXT, limited_proxy, plan
from tests.support.sandbox import SandboxControl
from tests.support.servers import free_port, running

pytestmark = pytest.mark.tools

WIDGET = Path(__file__).parents[2] / "proxy/playground/web/node_modules/altcha/dist/main/altcha.min.js"
PAGE = """<!doctype html><title>Guests</title>
<script type="module" src="altcha.js"></script>
<form><altcha-widget challenge="{proxy}/v1/sessions/challenge"></altcha-widget></form>
<output></output>
<script>
  document.querySelector("altcha-widget").addEventListener("verified", async (event) => {{
    const proof = {{ kind: "pow", value: event.detail.payload }};
    const answer = await fetch("{proxy}/v1/sessions/guest", {{
      method: "POST",
      headers: {{ "content-type": "application/json" }},
      body: JSON.stringify({{ proof }}),
    }});
    const session = await answer.json();
    document.querySelector("output").textContent = `${{answer.status}} ${{session.endpoints ?? session.detail}}`;
  }});
</script>
"""


def test_the_widget_gets_a_guest_its_session(chromium: Browser, sandbox: SandboxControl, tmp_path: Path) -> None:
    assert WIDGET.is_file(), "the widget is not installed; `make bundle` does that"
    origin = f"http://localhost:{free_port()}"
    guests = {"enabled": True, "tiers": [{"proof": "pow", "plan": "acme", "difficulty": 2000}]}
    tenants = {"acme": {"allowed_origins": [origin], "guests": guests}}
    with limited_proxy(sandbox, tmp_path, {"acme": plan(endpoints=[NEXT])}, tenants=tenants) as stack:

        def index(_: Request) -> HTMLResponse:
            return HTMLResponse(PAGE.format(proxy=stack.url))

        def script(_: Request) -> FileResponse:
            return FileResponse(WIDGET)

        app = Starlette(routes=[Route("/", index), Route("/altcha.js", script)])
        with running(app, port=urlsplit(origin).port), chromium.new_context() as context:
            page = context.new_page()
            page.goto(origin)
            page.get_by_role("checkbox").press("Space")
            expect(page.locator("output")).to_have_text(f"201 {NEXT}")
