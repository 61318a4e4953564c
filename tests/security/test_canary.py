"""A recognisable fal key: it appears in no answer and no log line after every route and every failure.

The proxy is a process of its own with debug logging on, so what it logs is what an operator would read.
"""

from __future__ import annotations

import base64
import json
import re
import sqlite3
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from proxy.auth.sessions import Sessions
from proxy.clock import SystemClock
from proxy.errors import ProxyError
from proxy.sandbox.app import create_sandbox
from proxy.settings import Secret, read
from proxy.stores.directory import TenantKey
from proxy.stores.uploads import Part, Upload
from proxy.tenants import keys
from proxy.tenants.caller import Session
from proxy.upstream.files import UploadDestination
from tests.security.calls import JSON, call, slot, submit
from tests.security.hostile import NEXT, NOBODYS, PATHS, TARGETS
from tests.security.serving import serving
from tests.security.shape import BODY
from tests.security.wire import Answer, Wire
from tests.support.images import PIXEL_PNG
from tests.support.sandbox import SandboxControl
from tests.support.servers import free_port, running
from tests.support.stack import sandbox_environ

KEY_ID, KEY_SECRET = "canary-id-7f3a91c2", "canary-secret-e5b80d64a1"
KEY = f"{KEY_ID}:{KEY_SECRET}"
SESSION_SECRET = "canary-of-the-sessions-0f9e8d7c6b5a4938"
PLAN_FILE = """
plans:
  full:
    endpoints: [fal-ai/llava-next, fal-ai/llavav15-13b]
    rate_limits: {ip: 100000/minute, session: 100000/minute, subject: 100000/minute, tenant: 100000/minute}
    poll_limits: {session: 100000/second}
    concurrency: {subject: 1000, tenant: 1000}
tenants:
  - {id: acme, plan: full, allowed_origins: ["https://app.acme.example"], guests: {enabled: true}}
"""


def spellings(secret: str) -> list[bytes]:
    """A secret as it stands, quoted for a URL, and in base64 wherever it begins (without the ends that vary)."""
    plain = secret.encode()
    shifted = [base64.b64encode(b"\0" * n + plain)[4 if n else 0 : -4] for n in range(3)]
    return [plain, quote(secret, safe="").encode(), *shifted, plain.hex().encode()]


def leaks(text: bytes, *secrets: str) -> list[str]:
    return [secret for secret in secrets if any(form in text for form in spellings(secret))]


def test_a_leak_would_be_noticed() -> None:
    encoded = base64.b64encode(f"Key {KEY}".encode())
    for form in (KEY.encode(), encoded, quote(KEY, safe="").encode()):
        assert leaks(b"before " + form + b" after", KEY) == [KEY], form
    assert not leaks(b"nothing of it", KEY, KEY_ID, KEY_SECRET)


class Walk:
    """Makes calls and keeps every answer."""

    def __init__(self, wire: Wire, sandbox: SandboxControl) -> None:
        self.wire = wire
        self.sandbox = sandbox
        self.seen: list[bytes] = []
        self.codes: set[str] = set()
        self.slots: list[str] = []

    def keep(self, answer: Answer) -> Answer:
        self.seen.append("\n".join(f"{name}: {value}" for name, value in answer.headers).encode() + b"\n" + answer.body)
        self.codes.update(answer.all("x-fal-error-type"))
        return answer

    def call(self, token: str, method: str, path: str, body: bytes = b"", surface: str = "hosts") -> None:
        try:
            self.keep(call(self.wire, surface, token, method, path, body))
        except (OSError, HTTPException) as cut:
            # A broken stream is cut off: keep what arrived.
            self.seen.append(repr(cut).encode())

    def send(self, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> Answer:
        return self.keep(self.wire.exchange(method, path, headers.items(), body))

    def upload(self, token: str) -> None:
        path = slot(self.wire, token)
        self.slots.append(path.rpartition("/")[2])
        self.send("PUT", path, {"content-type": "image/png"}, PIXEL_PNG)
        self.send("PUT", path, {"content-type": "image/png"}, PIXEL_PNG)

    def upload_in_parts(self, token: str) -> None:
        """Use an upload token: the token and the upload's id are shown to their owner only."""
        wanted = call(self.wire, "hosts", token, "POST", "rest/storage/auth/token", b"{}")
        bearer = {"authorization": f"Bearer {wanted.json()['token']}", "content-type": "image/png"}
        self.slots.append(wanted.json()["token"])
        begun = self.wire.exchange("POST", "/fal/cdn/files/upload/multipart", bearer.items()).json()
        self.slots.append(begun["uploadId"])
        base = f"{urlsplit(begun['access_url']).path}/multipart/{begun['uploadId']}"
        for tail in ("/0", "/1", "/2", "/complete"):
            self.send("POST" if tail == "/complete" else "PUT", base + tail, bearer, PIXEL_PNG)
        self.send("PUT", f"{base}/1", {**bearer, "authorization": f"Bearer {token}"}, PIXEL_PNG)
        self.send("POST", "/fal/cdn/files/upload", bearer, PIXEL_PNG)

    def upload_in_one_call(self, token: str) -> None:
        bearer = {"authorization": f"Bearer {token}"}
        self.send("POST", "/v1/uploads", {**bearer, "content-type": "image/png"}, PIXEL_PNG)
        self.send("POST", "/v1/uploads", {**bearer, "content-type": "image/png"}, b"MZ")
        self.send("POST", "/v1/uploads", {**bearer, "content-type": "multipart/form-data; boundary=b"}, b"--b--")

    def every_kind(self, token: str, job: str, surface: str) -> None:
        for path in (f"run/{NEXT}", f"run/{NEXT}/stream", f"queue/{NEXT}"):
            self.call(token, "POST", path, BODY, surface)
        for tail in ("/status?logs=1", "/status/stream?logs=1", ""):
            self.call(token, "GET", f"queue/{NEXT}/requests/{job}{tail}", surface=surface)
        self.call(token, "PUT", f"queue/{NEXT}/requests/{job}/cancel", surface=surface)
        wish = b'{"content_type":"image/png","file_name":"a.png"}'
        self.call(token, "POST", "rest/storage/upload/initiate", wish, surface)


FAULTS: list[dict[str, Any]] = [
    *({"fault": "drop", "when": when} for when in ("before", "lost", "during", "after")),
    *({"fault": "status", "status": status} for status in (400, 401, 402, 403, 404, 422, 429, 499, 500, 502, 503, 504)),
    *({"fault": "redirect", "redirect": "https://evil.example/", "status": status} for status in (301, 302, 307, 308)),
    {"fault": "nginx", "status": 502},
    {"fault": "nginx", "status": 504},
    {"fault": "status", "status": 200, "text": "<html>", "content_type": "text/html"},
    {"fault": "status", "status": 200, "body": None},
    {"fault": "status", "status": 200, "body": {"request_id": 5}},
    {"fault": "status", "status": 200, "body": {"file_url": "https://evil.example/", "upload_url": "http://["}},
    {"fault": "huge", "bytes": 5 * 2**20},
    {"fault": "garbage", "n": 1},
    {"fault": "gzip"},
    {"fault": "headers", "headers": {"content-encoding": "gzip"}},
    {"fault": "headers", "headers": {"content-type": "text/event-stream"}},
    {"fault": "fail", "error_type": "runner_disconnected"},
]


#: The failures that the walk must meet, as evidence that it covers them.
REACHED = {
    "bad_target",
    "bad_request",
    "webhook_not_allowed",
    "unauthenticated",
    "session_expired",
    "session_revoked",
    "endpoint_not_allowed",
    "origin_not_allowed",
    "not_allowed",
    "not_found",
    "method_not_allowed",
    "body_too_large",
    "unsupported_media_type",
    "invalid_input",
    "upstream_ambiguous",
    "upstream_rejected_key",
    "bad_upstream",
    "store_unavailable",
}


@pytest.fixture(scope="module")
def own_sandbox() -> Iterator[SandboxControl]:
    with running(create_sandbox(key=KEY)) as url:
        control = SandboxControl(url)
        yield control
        control.close()


@pytest.fixture
def environ(own_sandbox: SandboxControl, tmp_path: Path) -> dict[str, str]:
    plans = tmp_path / "plans.yaml"
    plans.write_text(PLAN_FILE)
    return {
        **sandbox_environ(own_sandbox.url),
        "FAL_KEY": KEY,
        "PROXY_SESSION_SECRETS": SESSION_SECRET,
        "PROXY_CONFIG": str(plans),
        "PROXY_LOG_LEVEL": "debug",
        # One failure after the other, so that each occurs.
        "PROXY_UPSTREAM_PROBE_SECONDS": "0",
    }


def mint(environ: dict[str, str], ttl_seconds: float = 600) -> tuple[str, Session]:
    return Sessions(read(environ).sessions.secrets, SystemClock()).mint("acme", "alice", ttl_seconds)


@pytest.mark.parametrize("form", ["json", "text"])
def test_the_key_appears_nowhere(
    own_sandbox: SandboxControl, tmp_path: Path, environ: dict[str, str], form: str
) -> None:
    own_sandbox.forget()
    own_sandbox.clear_faults()
    token, _ = mint(environ)
    expired, _ = mint(environ, -1)
    tenant_key = keys.make("acme", "an unknown key", 0)[0]
    with serving(tmp_path, {**environ, "PROXY_LOG_FORMAT": form}) as (url, log), Wire(url) as wire:
        walk = Walk(wire, own_sandbox)
        walk_everywhere(walk, token, expired, tenant_key)
        fals_signatures = [
            part for call in own_sandbox.requests() if call["host"] == "cdn" for part in parts(call["query"])
        ]
        walk_through_faults(walk, token)
        walk_into_damage(walk, token, tmp_path / "proxy.db")
    said = log.read_bytes()
    assert "fal_proxy_requests" in b"".join(walk.seen).decode("latin-1"), "the metrics are among it"
    assert said.count(b"/api/fal/proxy") > 100 and (form == "text" or b'"level":"error"' in said), "it did log"
    nothing = leaks(b"\n".join(walk.seen), KEY, KEY_ID, KEY_SECRET, SESSION_SECRET)
    assert not nothing, "in an answer"
    signature = token.rpartition(".")[2]
    private = [
        KEY,
        KEY_ID,
        KEY_SECRET,
        SESSION_SECRET,
        token,
        signature,
        expired,
        tenant_key,
        *walk.slots,
        *fals_signatures,
    ]
    assert len(walk.slots) >= 2 and fals_signatures
    assert not leaks(said, *private), "in the log"
    # Request lines, whose paths may hold credentials, are not logged at all, not even with the secret cut out.
    assert b" HTTP/1.1" not in said
    assert walk.codes >= REACHED


USAGE_ID, USAGE_SECRET = "canary-usage-id-91c27f3a", "canary-usage-secret-80d64a1e5b"
ADMIN_TOKEN = "canary-of-the-operator-5a49380f9e8d7c6b"


def test_the_key_for_fals_usage_appears_nowhere(
    own_sandbox: SandboxControl, tmp_path: Path, environ: dict[str, str]
) -> None:
    usage_key = f"{USAGE_ID}:{USAGE_SECRET}"
    given = {**environ, "FAL_USAGE_KEY": usage_key, "PROXY_ADMIN_TOKEN": ADMIN_TOKEN}
    own_sandbox.forget()
    with serving(tmp_path, given) as (url, log), Wire(url) as wire:
        walk = Walk(wire, own_sandbox)
        statuses = set()
        for fault in ({}, {"fault": "status", "status": 500}, {"fault": "drop", "drop": "before"}, {"fault": "nginx"}):
            own_sandbox.clear_faults()
            if fault:
                own_sandbox.fault(**fault, on={"host": "api"})
            headers = {"authorization": f"Bearer {ADMIN_TOKEN}"}
            statuses.add(walk.send("GET", "/v1/admin/reconciliation", headers).status)
    own_sandbox.clear_faults()
    assert statuses == {500, 503}
    sent = [dict(one["headers"])["authorization"] for one in own_sandbox.requests() if one["host"] == "api"]
    assert sent and set(sent) == {f"Key {usage_key}"}
    private = (usage_key, USAGE_ID, USAGE_SECRET, ADMIN_TOKEN)
    assert not leaks(b"\n".join(walk.seen), *private), "in an answer"
    assert not leaks(log.read_bytes(), *private), "in the log"


def parts(query: str) -> list[str]:
    """The values of a signed URL's query that are long enough to be secret."""
    return [value for value in re.split(r"[=&]", query) if len(value) >= 16]


def walk_everywhere(walk: Walk, token: str, expired: str, tenant_key: str) -> None:
    bearer = {"authorization": f"Bearer {token}", "content-type": JSON}
    cookie = {"cookie": f"__Host-fal_session={token}", "origin": "https://app.acme.example", "content-type": JSON}
    for surface in ("protocol", "session in the path", "hosts"):
        job = submit(walk.wire, token)
        walk.every_kind(token, job, surface)
        for wrong in (expired, token[:-1], tenant_key, KEY, f"{token}x", "x"):
            walk.call(wrong, "POST", f"run/{NEXT}", BODY, surface)
    walk.upload(token)
    walk.upload(token)
    walk.upload_in_parts(token)
    walk.upload_in_one_call(token)
    for row in [*TARGETS[::10], *PATHS[::10]]:
        where = ["/api/fal/proxy", row.headers[0]][row in PATHS] if row.headers else "/api/fal/proxy"
        if row.is_http and where.isascii():
            walk.send(row.method, where, {**bearer, "x-fal-target-url": "".join(row.headers)})
    for path in (
        "/livez",
        "/readyz",
        "/metrics",
        "/v1/session",
        "/v1/endpoints",
        f"/v1/endpoints/{NEXT}",
        "/v1/estimate",
        "/",
        "/nothing",
    ):
        for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"):
            if (method, path) != ("DELETE", "/v1/session"):
                walk.send(method, path, bearer)
                walk.send(method, path, {})
    for path in ("/v1/sessions", "/v1/sessions/guest", "/v1/sessions/cookie"):
        for headers in (
            bearer,
            cookie,
            {**cookie, "origin": "https://evil.example"},
            {"authorization": f"Key {tenant_key}"},
        ):
            walk.send("POST", path, headers)
    for headers in (
        bearer,
        cookie,
        {"cookie": cookie["cookie"]},
        {"x-fal-proxy-session": token},
        {"authorization": KEY},
    ):
        for body in (BODY, b"{", b'{"prompt":5}'):
            walk.send("POST", f"/fal/run/{NEXT}", headers, body)
    walk.send("POST", f"/fal/run/{NEXT}", {**bearer, "content-type": "text/plain"}, BODY)
    walk.send("POST", f"/fal/run/{NEXT}?fal_webhook=https://evil.example", bearer, BODY)
    walk.send("POST", f"/fal/run/{NEXT}", {**bearer, "x-fal-queue-priority": KEY}, BODY)
    walk.send("OPTIONS", "/api/fal/proxy", {"origin": "https://evil.example", "access-control-request-method": "POST"})
    large = (
        f"POST /fal/run/{NEXT} HTTP/1.1\r\nhost: x\r\nauthorization: Key {token}\r\ncontent-length: 99999999\r\n\r\n"
    )
    walk.keep(walk.wire.raw(large.encode()))
    walk.wire.close()
    broken = f"POST /s/{token}/api/fal/proxy HTTP/1.1\r\nauthorization: Key {token}\r\nx y: \0\r\n\r\n"
    walk.keep(walk.wire.raw(broken.encode()))


def walk_through_faults(walk: Walk, token: str) -> None:
    for fault in FAULTS:
        # A new job: the proxy answers for a known one without asking fal.
        job = submit(walk.wire, token)
        walk.sandbox.move_job(job, "COMPLETED")
        walk.sandbox.fault(**fault)
        # No status stream: a failing one is tried again for twenty seconds, with the same failures as the others.
        for path in (f"run/{NEXT}", f"run/{NEXT}/stream", f"queue/{NEXT}"):
            walk.call(token, "POST", path, BODY)
        for tail in ("/status", ""):
            walk.call(token, "GET", f"queue/{NEXT}/requests/{job}{tail}", surface="session in the path")
        walk.call(token, "PUT", f"queue/{NEXT}/requests/{job}/cancel")
        walk.call(token, "POST", "rest/storage/upload/initiate", b'{"content_type":"image/png","file_name":"a.png"}')
        walk.sandbox.clear_faults()
    for fault in FAULTS:
        path = slot(walk.wire, token)
        walk.slots.append(path.rpartition("/")[2])
        walk.sandbox.fault(**fault)
        walk.send("PUT", path, {"content-type": "image/png"}, PIXEL_PNG)
        walk.upload_in_one_call(token)
        walk.sandbox.clear_faults()


def walk_into_damage(walk: Walk, token: str, database: Path) -> None:
    """Use a revoked session, then a proxy without its database."""
    bearer = {"authorization": f"Bearer {token}", "content-type": JSON}
    with sqlite3.connect(database) as connection:
        connection.execute("DROP TABLE jobs")
    walk.call(token, "GET", f"queue/{NEXT}/requests/{NOBODYS}")
    walk.call(token, "POST", f"queue/{NEXT}", BODY)
    walk.send("DELETE", "/v1/session", bearer)
    walk.send("GET", "/v1/session", bearer)


def test_no_repr_and_no_error_shows_a_secret(environ: dict[str, str], tmp_path: Path) -> None:
    settings = read(
        {**environ, "PROXY_REDIS_URL": "redis://:canary-redis@localhost", "PROXY_ADMIN_TOKEN": "canary-admin" * 4}
    )
    text, record = keys.make("acme", "one", 0)
    token, session = mint(environ)
    upload = Upload(
        "canary-slot", "acme", "alice", "image/png", "https://x", "https://x?canary-signature", 1, 1.0, "full"
    )
    part = Part("canary-slot", 1, "attempt", 1)
    place = UploadDestination("https://x", "https://x?canary-signature")
    shown = [
        part,
        place,
        settings,
        settings.fal,
        settings.sessions,
        settings.stores,
        settings.server,
        Secret(KEY),
        record,
        session,
        upload,
    ]
    for one in shown:
        for said in (repr(one), str(one), f"{one}", f"{one!r}"):
            assert "canary" not in said and KEY not in said and text not in said and token not in said, type(one)
    assert text.split("_", 2)[2] not in repr(record) and record.secret_hash not in repr(record)


def test_a_refused_key_is_not_quoted(environ: dict[str, str]) -> None:
    """Neither the exception, nor its cause, nor its context holds the credential."""
    sessions = Sessions(read(environ).sessions.secrets, SystemClock())
    token, _ = sessions.mint("acme", "alice", -1)
    known: dict[str, TenantKey] = {}
    for present in (
        lambda: sessions.verify(token),
        lambda: sessions.verify(token[:-1]),
        lambda: sessions.verify(f"{token}canary"),
        lambda: keys.verify(f"fpk_{'0' * 16}_{'c' * 43}", known),
        lambda: keys.verify("fpk_canary", known),
    ):
        with pytest.raises(ProxyError) as refusal:
            present()
        said = f"{refusal.value} {refusal.value!r} {json.dumps(refusal.value.body())} {refusal.value.__cause__!r}"
        assert "canary" not in said and token[:20] not in said and "c" * 43 not in said


def test_an_unreachable_fal_is_reported_without_the_key(tmp_path: Path, environ: dict[str, str]) -> None:
    closed = f"http://127.0.0.1:{free_port()}"
    urls = {f"FAL_{name}_URL": f"{closed}/{name.lower()}" for name in ("RUN", "QUEUE", "REST", "CDN")}
    token, _ = mint(environ)
    with serving(tmp_path, {**environ, **urls}) as (url, log), Wire(url) as wire:
        answer = call(wire, "protocol", token, "POST", f"run/{NEXT}", BODY)
        assert (answer.status, answer.all("x-fal-error-type")) == (503, ["upstream_unavailable"])
        assert urlsplit(closed).netloc not in answer.body.decode()
    assert not leaks(log.read_bytes() + repr(answer).encode(), KEY, KEY_ID, KEY_SECRET, token)
