"""The client for the JVM over HTTP/2, behind nginx with the configuration of `examples/nginx`."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.driver import Driver, driving
from tests.clients.expectations import (
    ALL_LOGS,
    ALL_STATES,
    ENDPOINT,
    PICTURE,
    SLOWLY,
    asked,
    describes_the_picture,
    environment,
    messages,
    states,
)
from tests.clients.install import JVM
from tests.server.fronts.servers import Front
from tests.support.issuer import issue_certificate
from tests.support.limited import limited_proxy, plan
from tests.support.sandbox import SandboxControl
from tests.support.servers import free_port

pytestmark = pytest.mark.tools

EXAMPLES = Path(__file__).parents[2] / "examples"
PASSWORD = "of-no-secret"
#: What comes by HTTP/1.1 is refused.
_NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log; events {{ worker_connections 256; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream fal_proxy {{ server 127.0.0.1:{server}; keepalive 32; }}
  server {{
    listen 127.0.0.1:{port} ssl http2;
    ssl_certificate {chain}; ssl_certificate_key {key};
    if ($server_protocol != "HTTP/2.0") {{ return 505; }}
    include {examples}/nginx/fal-proxy.conf;
  }}
}}
"""


@pytest.fixture(scope="module")
def client(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    folder, port = tmp_path_factory.mktemp("http2"), free_port()
    (chain, key), _ = issue_certificate(folder)
    url = f"https://localhost:{port}"
    environ = {"PROXY_PUBLIC_URL": url, "PROXY_TRUSTED_PROXIES": "127.0.0.1"}
    with limited_proxy(shared_sandbox, folder, {"acme": plan()}, environ=environ) as proxy:
        server = proxy.settings.server.port
        text = _NGINX.format(folder=folder, port=port, server=server, chain=chain, key=key, examples=EXAMPLES)
        (folder / "nginx.conf").write_text(text)
        front = Front(["nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder)], port, folder / "log")
        front.start()
        try:
            usual = {"proxyUrl": f"{url}/api/fal/proxy", "session": proxy.token(), "endpoint": ENDPOINT}
            with driving("fal-client-0.7.1", _java(make_trust_store(folder)), environment(), **usual) as driver:
                yield driver
        finally:
            front.stop()


def make_trust_store(folder: Path) -> Path:
    """A key store by which the JVM trusts the authority of `ca.pem`."""
    store = folder / "trusted"
    what = ["-alias", "tests", "-file", str(folder / "ca.pem"), "-keystore", str(store), "-storepass", PASSWORD]
    subprocess.run(["keytool", "-importcert", "-noprompt", *what], check=True, capture_output=True, timeout=60)
    return store


def _java(store: Path) -> list[str]:
    trust = [f"-Djavax.net.ssl.trustStore={store}", f"-Djavax.net.ssl.trustStorePassword={PASSWORD}"]
    small = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
    return ["java", *small, *trust, "-cp", f"{JVM}/build/classes:{JVM}/lib/*", "scenarios.Main"]


def test_run(client: Driver, sandbox: SandboxControl) -> None:
    assert describes_the_picture(client.outcome("run", input=asked())["output"])


def test_subscribe(client: Driver, sandbox: SandboxControl) -> None:
    outcome = client.outcome("subscribe", input=asked(SLOWLY), logs=True)
    assert describes_the_picture(outcome["output"])
    assert states(outcome["updates"]) == ALL_STATES
    assert [message for update in outcome["updates"] if "logs" in update for message in messages(update)] == ALL_LOGS


def test_upload_and_its_url(client: Driver, sandbox: SandboxControl) -> None:
    outcome = client.outcome("upload", input=asked(), path=str(PICTURE), type="image/png")
    assert describes_the_picture(outcome["output"])


def test_refusal(client: Driver, sandbox: SandboxControl) -> None:
    error = client.error("run", input=asked(), session="nonsense")
    assert error["message"] == "Request failed with code: 401"
    assert sandbox.requests() == []
