"""The kits for backends, each started for real: their own user gets a session, and calls the proxy with it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from proxy.errors import RateLimited
from proxy.http.error_response import respond
from tests.clients.expectations import asked, describes_the_picture
from tests.clients.install import HERE, KITS
from tests.examples.projects import EXAMPLES, PYTHON, node_project, started
from tests.server.commands import PLAINLY
from tests.support.limited import NEXT
from tests.support.servers import free_port, running
from tests.support.stack import Stack
from tests.support.waiting import wait_until

MINTING = EXAMPLES / "minting"
NEXT_JS = str(KITS / "node_modules" / "next" / "dist" / "bin" / "next")
COMMANDS = {
    # The development server builds the one route in a few seconds; `next build` needs twenty.
    "nextjs": ["node", NEXT_JS, "dev", "--hostname", "127.0.0.1", "--port", "{port}"],
    "express": ["node", "server.js"],
    "hono": ["node", "server.js"],
    "fastapi": [PYTHON, "-m", "uvicorn", "app:app", "--port", "{port}"],
    "flask": [PYTHON, "-m", "flask", "--app", "app", "run", "--port", "{port}"],
    "django": [PYTHON, "-m", "django", "runserver", "--noreload", "--settings=project", "--pythonpath=.", "{port}"],
}
ALICE = {"cookie": "login=login-of-alice"}


@dataclass
class Backend:
    url: str
    proxy: Stack
    key: str

    def ask(self, method: str = "POST", **headers: str) -> httpx.Response:
        return httpx.request(method, f"{self.url}/api/fal/session", headers=headers, **PLAINLY)


@contextlib.contextmanager
def project_of(kit: str, folder: Path) -> Iterator[Path]:
    """The kit in a folder of its own, as its README says."""
    if (MINTING / kit / "package.json").exists():
        with node_project(MINTING / kit) as project:
            yield project
    else:
        project = shutil.copytree(MINTING / kit, folder / kit)
        shutil.copy(MINTING / "fal_proxy_sessions.py", project)
        yield project


@pytest.fixture(scope="module", params=COMMANDS)
def kit(
    request: pytest.FixtureRequest, shared_stack: Stack, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Backend]:
    folder, port = tmp_path_factory.mktemp(request.param), str(free_port())
    backend = Backend(f"http://127.0.0.1:{port}", shared_stack, shared_stack.tenant_key())
    command = [part.replace("{port}", port) for part in COMMANDS[request.param]]
    environ = {"FAL_PROXY_URL": shared_stack.url, "FAL_PROXY_TENANT_KEY": backend.key, "PORT": port}

    def answers() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return backend.ask().status_code == 401
        return False

    with project_of(request.param, folder) as project, started(command, project, folder / "log", **environ):
        wait_until(answers, lambda: (folder / "log").read_text())
        yield backend


@pytest.mark.tools
def test_a_signed_in_user_gets_a_session_and_calls_the_proxy(kit: Backend) -> None:
    minted = kit.ask(**ALICE)
    assert minted.status_code == 201 and set(minted.json()) == {"token", "expires_at"}
    assert minted.headers["cache-control"] == "no-store" and minted.headers["content-type"].startswith(
        "application/json"
    )
    assert kit.key not in f"{minted.text}{minted.headers}"
    with kit.proxy.client(minted.json()["token"]) as alice:
        assert alice.get("/v1/session").json()["subject"] == "alice"
        assert describes_the_picture(alice.post(f"/fal/run/{NEXT}", json=asked()).json()["output"])


@pytest.mark.tools
@pytest.mark.parametrize("headers", [{}, {"cookie": "login=mallory"}, {"cookie": "login="}])
def test_without_a_login_there_is_no_session(kit: Backend, headers: dict[str, str]) -> None:
    refused = kit.ask(**headers)
    assert (refused.status_code, refused.json()["error_type"]) == (401, "signed_out")
    assert refused.headers["cache-control"] == "no-store"


@pytest.mark.tools
def test_a_session_is_given_to_a_post_only(kit: Backend) -> None:
    assert kit.ask("GET", **ALICE).status_code in (404, 405)


# The two helpers when the proxy gives no session.

HELPERS = {
    "javascript": [
        "node",
        str(EXAMPLES.parent / "tests" / "examples" / "mint.mjs"),
        str(EXAMPLES / "client" / "server.js"),
    ],
    "python": [sys.executable, str(EXAMPLES.parent / "tests" / "examples" / "mint.py")],
}
KEY = "fpk_a-key-that-no-log-may-show"


@dataclass
class Minted:
    body: dict[str, Any]
    status: int
    headers: dict[str, str]
    log: str


Mint = Callable[..., Minted]


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.tools) for name in HELPERS])
def mint(request: pytest.FixtureRequest) -> Mint:
    def run(url: str, key: str = KEY, user: str = "alice") -> Minted:
        environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(MINTING)}
        environ |= {"FAL_PROXY_URL": url} if url else {}
        environ |= {"FAL_PROXY_TENANT_KEY": key} if key else {}
        done = subprocess.run([*HELPERS[request.param], user], env=environ, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        body, status, headers = json.loads(done.stdout)
        assert headers["cache-control"] == "no-store" and headers["content-type"] == "application/json"
        assert not key or key not in done.stdout + done.stderr
        return Minted(json.loads(body), status, headers, done.stderr)

    return run


@contextlib.contextmanager
def proxy_that_answers(answer: Response) -> Iterator[str]:
    def sessions(_: Request) -> Response:
        return answer

    def elsewhere(_: Request) -> Response:
        return JSONResponse({"token": "of-another-host", "expires_at": "2999-01-01T00:00:00Z"}, 201)

    routes = [Route("/v1/sessions", sessions, methods=["POST"]), Route("/elsewhere", elsewhere)]
    with running(Starlette(routes=routes)) as url:
        yield url


def is_unavailable(minted: Minted) -> bool:
    """Whether the answer says only that there is no session."""
    return (minted.status, minted.body["error_type"]) == (503, "session_unavailable") and set(minted.body) == {
        "error_type",
        "message",
    }


def test_a_session_has_the_time_and_the_endpoints_that_the_backend_says(mint: Mint, stack: Stack) -> None:
    minted = mint(stack.url, stack.tenant_key())
    assert minted.status == 201 and minted.log == ""
    with stack.client(minted.body["token"]) as alice:
        assert [one["id"] for one in alice.get("/v1/endpoints").json()["endpoints"]] == [NEXT]
    stack.clock.advance(61)
    with stack.client(minted.body["token"]) as alice:
        assert alice.get("/v1/session").json()["error_type"] == "session_expired"


def test_without_a_user_there_is_no_session(mint: Mint, stack: Stack) -> None:
    assert mint(stack.url, stack.tenant_key(), user="").status == 401


def test_a_refused_key_is_not_shown_as_a_401(mint: Mint, stack: Stack) -> None:
    """A 401 would say to the page that its user is signed out."""
    minted = mint(stack.url)
    assert is_unavailable(minted) and "401 unauthenticated (request " in minted.log


def test_an_invalid_user_is_reported(mint: Mint, stack: Stack) -> None:
    minted = mint(stack.url, stack.tenant_key(), user=" spaces ")
    assert is_unavailable(minted) and "400 bad_request (request " in minted.log


def test_the_retry_time_of_the_proxy_is_passed_on(mint: Mint) -> None:
    refusal = respond(RateLimited("Too many.", retry_after=7), "r-1")
    with proxy_that_answers(refusal) as url:
        minted = mint(url)
    assert (minted.status, minted.headers["retry-after"]) == (503, "7")
    assert minted.body == {"error_type": "rate_limited", "message": "Too many.", "retry_after": 7}


@pytest.mark.parametrize("answer", [HTMLResponse("<h1>502</h1>", 502), RedirectResponse("/elsewhere", 302)])
def test_an_answer_that_is_not_the_proxys_is_reported(mint: Mint, answer: Response) -> None:
    with proxy_that_answers(answer) as url:
        assert is_unavailable(mint(url))


def test_an_unreachable_proxy_is_reported(mint: Mint) -> None:
    assert is_unavailable(mint(f"http://127.0.0.1:{free_port()}"))


def test_a_proxy_that_never_answers_is_reported(mint: Mint) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        minted = mint(f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert is_unavailable(minted) and "tim" in minted.log, minted.log


@pytest.mark.parametrize(("url", "key"), [("", KEY), ("http://127.0.0.1:9", ""), ("http://127.0.0.1:9", f"{KEY}\n1")])
def test_missing_or_malformed_settings_are_reported(mint: Mint, url: str, key: str) -> None:
    minted = mint(url, key)
    assert is_unavailable(minted) and "set FAL_PROXY_URL and FAL_PROXY_TENANT_KEY" in minted.log
    assert KEY not in minted.log


def test_the_examples_name_the_tested_versions() -> None:
    tested = json.loads((HERE / "kits" / "package.json").read_text())["dependencies"]
    locked = (HERE / "kits" / "requirements.txt").read_text()
    folders = [*MINTING.iterdir(), EXAMPLES / "app", EXAMPLES / "app" / "server"]
    for manifest in [folder / "package.json" for folder in folders if (folder / "package.json").exists()]:
        named = json.loads(manifest.read_text())["dependencies"]
        assert (manifest.parent / named.pop("@fal-proxy/client").removeprefix("file:")).resolve() == EXAMPLES / "client"
        assert named.items() <= tested.items()
    for requirements in [folder / "requirements.txt" for folder in folders if (folder / "requirements.txt").exists()]:
        assert all(f"{pin} \\\n" in locked for pin in requirements.read_text().splitlines())
