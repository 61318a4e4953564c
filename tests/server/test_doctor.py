"""`fal-proxy doctor`: what it finds of a real proxy, behind fronts that are set up well and badly."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trustme
from starlette.applications import Starlette

from proxy.cli.doctor.tls import DAYS_LEFT
from tests.server.commands import Commands, Done
from tests.server.fronts.servers import Front
from tests.support.clock import MovableClock
from tests.support.limited import NEXT, asking, limited_proxy, plan
from tests.support.sandbox import SandboxControl
from tests.support.servers import free_port, running
from tests.support.stack import Stack

pytestmark = pytest.mark.tools

PAGE = "https://app.acme.example"
PLANS = {"acme": plan()}
TENANTS = {"acme": {"allowed_origins": [PAGE]}}
#: A front for one service, with what is written in its `location`.
NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log; events {{ worker_connections 256; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  {top}
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://127.0.0.1:{server}; proxy_set_header Host $host; {location} }}
  }}
}}
"""
WELL = "proxy_http_version 1.1; client_max_body_size 20m;"
#: nginx speaks HTTP/1.0 by default: without chunks it fills its buffers before it passes anything on.
BUFFERING = "proxy_http_version 1.0; client_max_body_size 20m; proxy_ignore_headers X-Accel-Buffering;"


class RunningClock(MovableClock):
    """Goes on, ahead of this machine's by what it was moved."""

    def __init__(self) -> None:
        super().__init__()
        self.ahead = 0.0

    def now(self) -> float:
        return time.time() + self.ahead

    def advance(self, seconds: float) -> None:
        self.ahead += seconds


@pytest.fixture(scope="module")
def clock() -> RunningClock:
    return RunningClock()


@pytest.fixture(scope="module")
def limited(
    shared_sandbox: SandboxControl, clock: RunningClock, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("doctor")
    with limited_proxy(shared_sandbox, folder, PLANS, tenants=TENANTS, clock=clock) as stack:
        yield stack


@pytest.fixture
def proxy(limited: Stack, sandbox: SandboxControl) -> Stack:
    sandbox.pace(run_seconds=2)
    return limited


class Doctor:
    """The command, by default with a tenant key."""

    def __init__(self, commands: Commands, folder: Path) -> None:
        self._commands = commands
        self._folder = folder

    def run(self, url: str, *arguments: str, **environ: str) -> Done:
        return self._commands("doctor", url, *arguments, environ=environ, cwd=self._folder)

    def examine(self, url: str, *arguments: str, **environ: str) -> dict[str, dict[str, str]]:
        """What each check found; the exit status says whether one failed."""
        done = self.run(url, *arguments, "--json", **environ)
        found = {one["check"]: one for one in json.loads(done.stdout)}
        assert done.code == (1 if "fail" in {one["level"] for one in found.values()} else 0), done.stderr
        for one in found.values():
            assert bool(one["advice"]) is (one["level"] != "ok"), one
        return found


@pytest.fixture
def doctor(commands: Commands, tmp_path: Path) -> Doctor:
    return Doctor(commands, tmp_path)


def key_of(proxy: Stack) -> str:
    """A tenant key that the proxy knows, and its clock set right again."""
    with proxy.client(key := proxy.tenant_key("acme")) as backend:
        backend.get("/v1/session").raise_for_status()
    proxy.clock.advance(time.time() - proxy.clock.now())
    return key


@contextlib.contextmanager
def fronted(proxy: Stack, folder: Path, location: str = WELL, top: str = "") -> Iterator[str]:
    """The address of nginx in front of a proxy."""
    port, settings = free_port(), folder / "nginx.conf"
    server = urlsplit(proxy.url).port
    settings.write_text(NGINX.format(folder=folder, server=server, port=port, location=location, top=top))
    front = Front(["nginx", "-c", str(settings), "-p", str(folder)], port, folder / "log")
    front.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        front.stop()


def levels(found: dict[str, dict[str, str]]) -> dict[str, str]:
    return {check: one["level"] for check, one in found.items()}


def input_file(folder: Path) -> str:
    path = folder / "input.json"
    path.write_text(json.dumps(asking("What is it?")))
    return str(path)


CHECKS = ("tls", "health", "headers", "keep-alive", "cors", "session", "clock", "bodies", "stream")


def test_a_healthy_deployment_passes_every_check(proxy: Stack, doctor: Doctor, tmp_path: Path) -> None:
    with fronted(proxy, tmp_path) as url:
        options = ["--origin", PAGE, "--call", NEXT, "--input", input_file(tmp_path)]
        found = doctor.examine(url, *options, FAL_PROXY_KEY=key_of(proxy))
    assert levels(found) == dict.fromkeys(CHECKS, "ok"), found
    assert re.match(r"first event after [01]\.\d\d s, \d+ pieces in \d\.\d s", found["stream"]["message"])


def count_revocations(proxy: Stack) -> int:
    path = proxy.settings.stores.database_url.reveal().removeprefix("sqlite:///")
    with contextlib.closing(sqlite3.connect(path)) as database:
        (number,) = database.execute("SELECT count(*) FROM revocations WHERE session_id IS NOT NULL").fetchone()
    return int(number)


def test_doctor_revokes_only_the_session_that_it_minted(proxy: Stack, doctor: Doctor) -> None:
    key, before = key_of(proxy), count_revocations(proxy)
    doctor.examine(proxy.url, FAL_PROXY_KEY=key)
    assert count_revocations(proxy) == before + 1
    doctor.examine(proxy.url, FAL_PROXY_KEY=key, FAL_PROXY_SESSION=(token := proxy.token(tenant="acme")))
    assert count_revocations(proxy) == before + 1
    with proxy.client(token) as own:
        assert own.get("/v1/session").status_code == 200


def test_the_output_for_people_is_lines_of_text(proxy: Stack, doctor: Doctor) -> None:
    done = doctor.run(proxy.url, "--origin", PAGE)
    lines = done.stdout.splitlines()
    assert done.code == 0 and lines[0] == "ok    tls         plain http"
    assert lines[-2:] == [
        "warn  session     not checked",
        "                  Set FAL_PROXY_KEY to a tenant key, or FAL_PROXY_SESSION to a session.",
    ]


# --- what stands in between


def test_a_front_that_buffers(proxy: Stack, doctor: Doctor, tmp_path: Path) -> None:
    with fronted(proxy, tmp_path, BUFFERING) as url:
        options = ["--call", NEXT, "--input", input_file(tmp_path)]
        found = doctor.examine(url, *options, FAL_PROXY_KEY=key_of(proxy))
    assert found["stream"]["level"] == "fail" and "held back until the end" in found["stream"]["message"]
    assert "proxy_buffering off" in found["stream"]["advice"]


def test_a_job_that_ends_too_soon_to_show_buffering(
    proxy: Stack, doctor: Doctor, sandbox: SandboxControl, tmp_path: Path
) -> None:
    sandbox.pace(run_seconds=0, seconds_per_position=0)
    found = doctor.examine(proxy.url, "--call", NEXT, "--input", input_file(tmp_path), FAL_PROXY_KEY=key_of(proxy))
    assert found["stream"]["level"] == "warn" and "too soon" in found["stream"]["advice"]


def test_a_front_that_cuts_streams(proxy: Stack, doctor: Doctor, sandbox: SandboxControl, tmp_path: Path) -> None:
    sandbox.pace(run_seconds=6)
    with fronted(proxy, tmp_path, f"{WELL} proxy_read_timeout 1s;") as url:
        options = ["--call", NEXT, "--input", input_file(tmp_path)]
        found = doctor.examine(url, *options, FAL_PROXY_KEY=key_of(proxy))
    assert found["stream"]["level"] == "fail"
    assert "broke off" in found["stream"]["message"] or "no answer" in found["stream"]["message"]


def test_a_front_that_compresses(proxy: Stack, doctor: Doctor, tmp_path: Path) -> None:
    top = "gzip on; gzip_types text/event-stream; gzip_min_length 0; gzip_proxied any; gzip_http_version 1.0;"
    with fronted(proxy, tmp_path, WELL, top) as url:
        options = ["--call", NEXT, "--input", input_file(tmp_path)]
        found = doctor.examine(url, *options, FAL_PROXY_KEY=key_of(proxy))
    assert found["stream"]["level"] == "fail" and "compressed (gzip)" in found["stream"]["message"]


def test_an_endpoint_that_the_tenant_may_not_call(proxy: Stack, doctor: Doctor) -> None:
    found = doctor.examine(proxy.url, "--call", "fal-ai/flux/dev", FAL_PROXY_KEY=key_of(proxy))
    assert found["stream"]["level"] == "fail" and "403 endpoint_not_allowed" in found["stream"]["message"]


def test_a_front_that_limits_bodies(proxy: Stack, doctor: Doctor, tmp_path: Path) -> None:
    with fronted(proxy, tmp_path, "") as url:
        found = doctor.examine(url, FAL_PROXY_KEY=key_of(proxy))
    assert found["bodies"]["level"] == "fail" and found["bodies"]["message"].endswith("refused on its way: 413")


@pytest.mark.parametrize(
    ("location", "check", "level", "words"),
    [
        ("proxy_intercept_errors on; error_page 401 = @gone;", "headers", "fail", "a refusal arrives as"),
        ("proxy_hide_header Cache-Control;", "headers", "fail", "cache-control"),
        ("proxy_set_header X-Request-Id other-request-id;", "headers", "warn", "x-request-id"),
        ("keepalive_timeout 0;", "keep-alive", "warn", "a new connection"),
        ("add_header Access-Control-Allow-Origin * always;", "cors", "fail", "allows an origin 2 times"),
        ("proxy_set_header Authorization '';", "session", "fail", "no session is minted: 401 unauthenticated"),
        ("proxy_hide_header Access-Control-Allow-Headers;", "cors", "fail", "the authorization header"),
    ],
)
def test_a_front_that_changes_requests_or_answers(
    proxy: Stack, doctor: Doctor, tmp_path: Path, location: str, check: str, level: str, words: str
) -> None:
    with fronted(proxy, tmp_path, f"{WELL} {location}") as url:
        found = doctor.examine(url, "--origin", PAGE, FAL_PROXY_KEY=key_of(proxy))
    assert found[check]["level"] == level and words in found[check]["message"], found


# --- the deployment itself


def test_an_origin_that_may_not_call(proxy: Stack, doctor: Doctor) -> None:
    found = doctor.examine(proxy.url, "--origin", "https://other.example")
    assert found["cors"]["level"] == "fail" and "PROXY_ALLOWED_ORIGINS" in found["cors"]["advice"]


@pytest.mark.parametrize(
    ("seconds", "level", "words"), [(20, "warn", "ahead of"), (120, "fail", "ahead of"), (-100, "fail", "behind")]
)
def test_a_clock_that_differs(
    proxy: Stack, clock: RunningClock, doctor: Doctor, seconds: float, level: str, words: str
) -> None:
    key = key_of(proxy)
    clock.advance(seconds)
    try:
        found = doctor.examine(proxy.url, FAL_PROXY_KEY=key)
    finally:
        clock.advance(-seconds)
    assert found["clock"]["level"] == level and words in found["clock"]["message"]


def test_a_wrong_key_and_a_wrong_session(proxy: Stack, doctor: Doctor) -> None:
    found = doctor.examine(proxy.url, FAL_PROXY_KEY="fpk_0123456789abcdef_wrong")
    assert found["session"]["level"] == "fail" and "FAL_PROXY_KEY" in found["session"]["advice"]
    assert "bodies" not in found and "stream" not in found
    found = doctor.examine(proxy.url, FAL_PROXY_SESSION="wrong")
    assert found["session"]["level"] == "fail" and "FAL_PROXY_SESSION" in found["session"]["advice"]
    for name in ("FAL_PROXY_KEY", "FAL_PROXY_SESSION"):
        assert "hush" not in str(doctor.run(proxy.url, **{name: "hush-hush"}))


@pytest.mark.parametrize("name", ["FAL_PROXY_KEY", "FAL_PROXY_SESSION"])
@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ('"hush"', "contains quotes; remove them"),
        ("\u201chush\u201d", "contains quotes; remove them"),
        *[
            (f"hush{more}hush", "contains a space, a comma or a character")
            for more in (" ", ",", "\n", "\u00e4", "\u200b")
        ],
    ],
)
def test_a_credential_that_no_header_can_carry_is_named(
    proxy: Stack, doctor: Doctor, name: str, value: str, problem: str
) -> None:
    done = doctor.run(proxy.url, **{name: value})
    assert (done.code, done.stdout) == (1, "") and done.stderr.startswith(f"{name}: {problem}")
    assert "hush" not in done.stderr and "Traceback" not in done.stderr


def test_an_origin_is_read_as_the_settings_read_it(proxy: Stack, doctor: Doctor) -> None:
    done = doctor.run(proxy.url, "--origin", "app.acme.example")
    assert done.code == 1 and done.stderr.startswith("--origin: ") and "is not an origin such as" in done.stderr
    found = doctor.examine(proxy.url, "--origin", "https://b\u00fccher.example")
    assert found["cors"]["level"] == "fail" and "403" in found["cors"]["message"]


def test_a_low_body_limit_of_the_proxy_itself_is_reported(
    sandbox: SandboxControl, doctor: Doctor, tmp_path: Path
) -> None:
    environ = {"PROXY_MAX_BODY_BYTES": "1048576"}
    with limited_proxy(sandbox, tmp_path, PLANS, environ=environ) as small:
        found = doctor.examine(small.url, FAL_PROXY_KEY=key_of(small))
    assert found["bodies"]["level"] == "warn" and "413 body_too_large" in found["bodies"]["message"]


# --- certificates


def test_a_certificate_that_is_not_trusted_gets_no_credential(shared_tls_stack: Stack, doctor: Doctor) -> None:
    url = shared_tls_stack.url
    found = doctor.examine(url, FAL_PROXY_KEY="fpk_0123456789abcdef_secret")
    assert found["tls"]["level"] == "fail" and "not trusted" in found["tls"]["message"]
    assert levels(found) | {"tls": "fail"} == {
        "tls": "fail",
        "health": "ok",
        "headers": "ok",
        "keep-alive": "ok",
        "session": "warn",
    }
    trusted = doctor.examine(url, SSL_CERT_FILE=str(shared_tls_stack.ca_file))
    assert trusted["tls"]["level"] == "ok" and "TLSv1.3" in trusted["tls"]["message"]


def test_a_certificate_that_ends_soon(doctor: Doctor, tmp_path: Path) -> None:
    authority = trustme.CA()
    soon = datetime.now(UTC) + timedelta(days=DAYS_LEFT - 1)
    issued = authority.issue_cert("localhost", not_after=soon)
    chain, key, ca_file = tmp_path / "chain.pem", tmp_path / "key.pem", tmp_path / "ca.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(key)
    authority.cert_pem.write_to_path(ca_file)
    with running(Starlette(), certificate=(chain, key)) as url:
        found = doctor.examine(url, SSL_CERT_FILE=str(ca_file))
    assert found["tls"]["level"] == "warn" and "Renew" in found["tls"]["advice"]


# --- what is no deployment


#: Each is refused by another part: the parser of URLs, the client, the resolver.
NO_ADDRESSES = ("http://[::1", "http://ai.example.com:99999", "http://ai.example.com:0", "http://ai..example.com")


def test_a_malformed_or_silent_address_is_reported(proxy: Stack, doctor: Doctor) -> None:
    for wrong in ("ai.example.com", "ftp://ai.example.com", "https://", *NO_ADDRESSES):
        found = doctor.examine(wrong)
        assert levels(found) == {"address": "fail"}
    found = doctor.examine(f"http://127.0.0.1:{free_port()}")
    assert levels(found) == {"tls": "ok", "health": "fail"} and "ConnectError" in found["health"]["message"]
    found = doctor.examine(f"https://127.0.0.1:{free_port()}")
    assert found["tls"]["level"] == "fail" and "no TLS connection" in found["tls"]["message"]
    with running(Starlette()) as url:
        assert "404, not by the proxy" in doctor.examine(url)["health"]["message"]
    assert doctor.examine(f"{proxy.url}/somewhere")["health"]["level"] == "fail"


def test_an_address_with_a_password_is_refused_and_not_shown(doctor: Doctor) -> None:
    for address in (f"http://alice:canary@127.0.0.1:{free_port()}", "https:/alice:canary@[ai.example.com"):
        found = doctor.examine(address)
        assert "a user or a password" in found["address"]["message"] and "canary" not in str(found)


def test_an_input_that_cannot_be_read(doctor: Doctor, proxy: Stack, tmp_path: Path) -> None:
    cannot = "cannot be read"
    for text, words in ((None, cannot), ("{", cannot), ("[" * 100_000, cannot), ("[]", "must be a JSON object")):
        path = tmp_path / "input.json"
        if text is not None:
            path.write_text(text)
        done = doctor.run(proxy.url, "--call", NEXT, "--input", "input.json")
        assert done.code == 1 and words in done.stderr and done.stdout == ""
