"""The configurations for nginx and Caddy, run by them: the app and the proxy on one origin."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.routes.jobs import JOBS, SSE, events, new
from tests.server.fronts.servers import Front
from tests.support.images import png
from tests.support.limited import NEXT, asking, assert_refused_with, limited_proxy, plan
from tests.support.sandbox import SandboxControl
from tests.support.servers import free_port
from tests.support.stack import Stack
from tests.support.waiting import wait_until

pytestmark = pytest.mark.tools

EXAMPLES = Path(__file__).parents[2] / "examples"
HELD = "[[pace hold=IN_PROGRESS queue_positions=0 run_seconds=0]]"
_NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
  access_log {folder}/access.log; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream fal_proxy {{ server 127.0.0.1:{server}; keepalive 32; }}
  server {{
    listen 127.0.0.1:{port};
    include {examples}/nginx/fal-proxy.conf;
    location / {{ root {folder}/app; }}
  }}
}}
"""
_CADDY = """
{{
	admin off
	auto_https off
}}
http://127.0.0.1:{port} {{
	import {examples}/caddy/fal-proxy.caddy
	root * {folder}/app
	file_server
	log {{
		output file {folder}/access.log
	}}
}}
"""
PLANS = {
    "acme": plan(uploads={"max_bytes": 2**24}),
    "few": plan(rate_limits={"ip": "3/hour", "session": None, "subject": None, "tenant": None}),
}


@dataclass
class Site:
    """The origin that callers see, and the proxy behind it."""

    url: str
    proxy: Stack
    access_log: Path

    def client(self, token: str = "", **headers: str) -> httpx.Client:
        if token:
            headers["authorization"] = f"Bearer {token}"
        return httpx.Client(base_url=self.url, headers=headers, timeout=30, trust_env=False, verify=False)


@contextmanager
def front_of(name: str, folder: Path, port: int, server: int) -> Iterator[None]:
    (folder / "app").mkdir()
    (folder / "app" / "index.html").write_text("the app")
    settings = folder / "settings"
    text = {"nginx": _NGINX, "caddy": _CADDY}[name]
    settings.write_text(text.format(folder=folder, server=server, port=port, examples=EXAMPLES))
    commands = {
        "nginx": ["nginx", "-c", str(settings), "-p", str(folder)],
        "caddy": ["caddy", "run", "--config", str(settings), "--adapter", "caddyfile"],
    }
    environ = {"HOME": str(folder), "FAL_PROXY": f"127.0.0.1:{server}"}
    front = Front(commands[name], port, folder / "log", environ=environ)
    front.start()
    try:
        yield
    finally:
        front.stop()


@pytest.fixture(scope="module", params=["nginx", "caddy"])
def shared_site(
    request: pytest.FixtureRequest, shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    folder, port = tmp_path_factory.mktemp(request.param), free_port()
    url = f"http://127.0.0.1:{port}"
    environ = {"PROXY_PUBLIC_URL": url, "PROXY_TRUSTED_PROXIES": "127.0.0.1"}
    with (
        limited_proxy(shared_sandbox, folder, PLANS, environ=environ) as proxy,
        front_of(request.param, folder, port, proxy.settings.server.port),
    ):
        yield Site(url, proxy, folder / "access.log")


@pytest.fixture
def site(shared_site: Site, sandbox: SandboxControl) -> Site:
    return shared_site


def test_the_app_and_the_proxy_are_one_origin(site: Site) -> None:
    with site.client(origin=site.url) as page:
        assert page.get("/").text == "the app"
        headers = {"authorization": f"Bearer {site.proxy.token()}"}
        cookie = page.post("/v1/sessions/cookie", headers=headers).headers["set-cookie"].partition(";")[0]
        target = {"x-fal-target-url": f"https://fal.run/{NEXT}", "cookie": cookie}
        assert page.post("/api/fal/proxy", json=asking("?"), headers=target).json()["output"]


def test_urls_in_answers_lead_back_to_the_origin(site: Site) -> None:
    with site.client(site.proxy.token()) as client:
        submitted = client.post(f"/fal/queue/{NEXT}", json=asking("?")).json()
        assert submitted["status_url"].startswith(f"{site.url}/fal/queue/")
        assert client.get(submitted["status_url"]).status_code in (200, 202)


def test_events_come_while_the_job_runs(site: Site) -> None:
    with (
        site.client(site.proxy.token()) as client,
        client.stream("POST", JOBS, json=new(HELD), headers=SSE) as stream,
    ):
        received = events(stream)
        status = next(received)
        assert status["event"] == "status"
        site.proxy.sandbox.move_job(json.loads(status["data"])["id"], "COMPLETED")
        assert [event["event"] for event in received][-1] == "result"


def test_a_large_file_passes(site: Site) -> None:
    with site.client(site.proxy.token(), **{"content-type": "image/png"}) as client:
        assert client.post("/v1/uploads", content=png(5_000_000)).status_code == 201


@pytest.mark.parametrize("path", ["/v1/admin", "/v1/admin/tenants", "/metrics", "/readyz", "/livez", "/openapi.json"])
def test_routes_for_operators_are_not_reachable_from_outside(site: Site, path: str) -> None:
    with site.client() as stranger:
        answer = stranger.get(path)
        assert answer.status_code == 404 and "x-request-id" not in answer.headers


def test_callers_cannot_choose_their_address(site: Site) -> None:
    with site.client(site.proxy.token(tenant="few")) as client:
        for number in range(3):
            forged = {"x-forwarded-for": f"203.0.113.{number}"}
            assert client.post(f"/fal/run/{NEXT}", json=asking("?"), headers=forged).status_code == 200
        forged = {"x-forwarded-for": "203.0.113.9"}
        assert_refused_with(
            client.post(f"/fal/run/{NEXT}", json=asking("?"), headers=forged), 429, "rate_limited", "ip"
        )


def test_a_session_in_the_path_is_not_logged(site: Site) -> None:
    token = site.proxy.token()
    with site.client() as client:
        target = {"x-fal-target-url": f"https://fal.run/{NEXT}"}
        assert client.post(f"/s/{token}/api/fal/proxy", json=asking("?"), headers=target).status_code == 200
        client.get("/logged.html")
    wait_until(lambda: "/logged.html" in site.access_log.read_text(), "nothing is logged")
    assert token not in site.access_log.read_text()
