"""Chromium, started once for this folder, and for each test a visit with a profile of its own."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, sync_playwright
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from proxy.upstream.client import Timeouts
from tests.browser.visit import Visit
from tests.support.sandbox import SandboxControl
from tests.support.servers import running
from tests.support.stack import Stack, proxy_in_front_of

PAGE = Path(__file__).parents[2] / "proxy" / "playground" / "web" / "static"
CHELSEA = Path(__file__).parents[1] / "pictures" / "chelsea.png"
#: Nothing but the page itself is to use the network; without its sandbox, as tests may run as root.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


# Playwright's loop counts as running in this thread while it lives, so it must not outlive this folder's tests.
@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    program = shutil.which("chromium")
    assert program, "Chromium is not installed; `make tools` does that"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def shared_stack(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A proxy for each file of tests: from one address, it gives its page forty times a minute, and a machine may be
    fast. A refusal keeps its status in a stream too, as fal may take a minute for it on a slow one."""
    folder, patient = tmp_path_factory.mktemp("stack"), Timeouts(stream_head=60)
    with proxy_in_front_of(shared_sandbox, folder, dev=True, timeouts=patient) as stack:
        yield stack


@pytest.fixture
def stack(stack: Stack) -> Stack:
    """The proxy that tests share, at the time of the browser, which would else take sessions for over in a long run."""
    stack.clock.catch_up()
    return stack


@pytest.fixture
def context_options() -> dict[str, str]:
    """How the profile differs from the usual one; a test overrides it by its parameters."""
    return {}


@pytest.fixture
def visit(chromium: Browser, context_options: dict[str, str], tmp_path: Path) -> Iterator[Visit]:
    """A visit of the page; at the end, nothing may have gone wrong that the test did not expect."""
    assert (PAGE / "bundle" / "main.js").is_file(), "the page is not built; `make bundle` does that"
    archive = tmp_path / "visit.har"
    # A picture's preview (`blob:`) never crossed the network.
    recorded = {"record_har_path": archive, "record_har_content": "embed", "record_har_url_filter": re.compile("^http")}
    context = chromium.new_context(**recorded, **context_options)  # type: ignore[arg-type]
    visit = Visit(context, archive)
    yield visit
    visit.check()
    context.close()


@contextlib.contextmanager
def serving_the_page(origin: str, *proxies: str) -> Iterator[str]:
    """The page's files at another origin, by a static server that knows nothing of the proxy; it names its proxies."""
    page = (PAGE / "index.html").read_text()
    named = page.replace('name="proxy-origins" content=""', f'name="proxy-origins" content="{" ".join(proxies)}"')
    assert named != page or not proxies

    def index(_: Request) -> HTMLResponse:
        return HTMLResponse(named)

    app = Starlette(routes=[Route("/", index), Mount("/playground", StaticFiles(directory=PAGE))])
    with running(app, port=urlsplit(origin).port):
        yield origin
