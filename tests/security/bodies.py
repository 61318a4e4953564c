"""Every route that takes a body, with a valid body for it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from tests.security.calls import JSON
from tests.security.hostile import NEXT
from tests.security.shape import BODY, INPUT
from tests.security.wire import Answer, Wire
from tests.support.images import PIXEL_PNG
from tests.support.limited import ADMIN_TOKEN, plan
from tests.support.stack import Stack

PAGE = "https://app.acme.example"
PLANS = {"acme": plan(), "few": plan(rate_limits={"ip": None, "session": None, "subject": "1/hour", "tenant": None})}
TENANTS = {"acme": {"allowed_origins": [PAGE], "guests": {"enabled": True, "per_address": None}}}
PNG = "image/png"
_FORM = b'--x\r\ncontent-disposition: form-data; name="file"; filename="a.png"\r\ncontent-type: image/png\r\n\r\n'


@dataclass(frozen=True)
class Taking:
    """A request with a body.

    Attributes:
        kind: `input` of a model, `form` of the proxy's own, or `file`.
    """

    name: str
    kind: str
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def send(self, wire: Wire, body: bytes | None = None, **more: str) -> Answer:
        headers = {**self.headers, **{name.replace("_", "-"): value for name, value in more.items()}}
        return wire.exchange(self.method, self.path, headers.items(), self.body if body is None else body)

    def head(self, *more: str) -> bytes:
        """The bytes of its head, with more lines and without a length."""
        named = [f"{name}: {value}" for name, value in {"host": "proxy", **self.headers}.items()]
        return "\r\n".join([f"{self.method} {self.path} HTTP/1.1", *named, *more, "", ""]).encode()


def inputs(stack: Stack, token: str | None = None) -> list[Taking]:
    """The calls with an input of a model."""
    bearer = {"authorization": f"Bearer {token or stack.token()}", "content-type": JSON}
    job = json.dumps({"endpoint": NEXT, "input": INPUT}).encode()
    session = bearer["authorization"].partition(" ")[2]
    target = {"x-fal-target-url": f"https://queue.fal.run/{NEXT}"}
    return [
        Taking("run", "input", "POST", f"/fal/run/{NEXT}", bearer, BODY),
        Taking("stream", "input", "POST", f"/fal/run/{NEXT}/stream", bearer, BODY),
        Taking("submit", "input", "POST", f"/fal/queue/{NEXT}", bearer, BODY),
        Taking("protocol", "input", "POST", "/api/fal/proxy", {**bearer, **target}, BODY),
        Taking("path", "input", "POST", f"/s/{session}/api/fal/proxy", {"content-type": JSON, **target}, BODY),
        Taking("jobs", "input", "POST", "/v1/jobs", bearer, job),
        Taking("job stream", "input", "POST", "/v1/jobs", {**bearer, "accept": "text/event-stream"}, job),
    ]


def forms(stack: Stack, wire: Wire) -> list[Taking]:
    """The requests with a form of the proxy's own."""
    bearer = {"authorization": f"Bearer {stack.token()}", "content-type": JSON}
    admin = {"authorization": f"Bearer {ADMIN_TOKEN}", "content-type": JSON}
    key = {"authorization": f"Bearer {stack.tenant_key()}", "content-type": JSON}
    wanted = b'{"content_type": "image/png", "file_name": "a.png"}'
    slot = f"{_slot(wire, bearer, in_parts=True)}/complete"
    plans = json.dumps({"plans": {"spare": {"endpoints": [NEXT]}}}).encode()
    minted = b'{"tenant": "acme", "subject": "x"}'
    return [
        Taking("mint", "form", "POST", "/v1/sessions", key, b'{"subject": "x"}'),
        Taking("guest", "form", "POST", "/v1/sessions/guest", {"origin": PAGE, "content-type": JSON}, b"{}"),
        Taking("initiate", "form", "POST", "/fal/rest/storage/upload/initiate", bearer, wanted),
        Taking("initiate parts", "form", "POST", "/fal/rest/storage/upload/initiate-multipart", bearer, wanted),
        Taking("complete", "form", "POST", slot, {"content-type": JSON}, b'{"parts": []}'),
        Taking("admin keys", "form", "POST", "/v1/admin/tenants/acme/keys", admin, b"{}"),
        Taking("admin mint", "form", "POST", "/v1/admin/sessions", admin, minted),
        Taking("admin revoke", "form", "DELETE", "/v1/admin/sessions", admin, minted),
        Taking("plan file", "plan file", "PUT", "/v1/admin/tenants", admin, plans),
    ]


def files(stack: Stack, wire: Wire) -> list[Taking]:
    """The requests with a file."""
    bearer = {"authorization": f"Bearer {stack.token()}"}
    png = {"content-type": PNG}
    answer = wire.exchange("POST", "/fal/rest/storage/auth/token", bearer.items(), b"{}")
    cdn = {"authorization": f"Bearer {answer.json()['token']}", **png}
    begin = Taking("cdn parts", "announced file", "POST", "/fal/cdn/files/upload/multipart", cdn, b"")
    begun = begin.send(wire).json()
    part = f"{urlsplit(begun['access_url']).path}/multipart/{begun['uploadId']}/1"
    form = {**bearer, "content-type": "multipart/form-data; boundary=x"}
    raw = Taking("upload", "file", "POST", "/v1/uploads", {**bearer, **png}, PIXEL_PNG)
    return [
        raw,
        replace(raw, name="form upload", headers=form, body=_FORM + PIXEL_PNG + b"\r\n--x--\r\n"),
        Taking("slot", "file", "PUT", _slot(wire, bearer), png, PIXEL_PNG),
        Taking("part", "file", "PUT", f"{_slot(wire, bearer, in_parts=True)}/1", png, PIXEL_PNG),
        Taking("cdn upload", "file", "POST", "/fal/cdn/files/upload", cdn, PIXEL_PNG),
        begin,
        Taking("cdn part", "file", "PUT", part, cdn, PIXEL_PNG),
    ]


def _slot(wire: Wire, bearer: dict[str, str], *, in_parts: bool = False) -> str:
    path = f"/fal/rest/storage/upload/initiate{'-multipart' if in_parts else ''}"
    wanted = b'{"content_type": "image/png"}'
    answer = wire.exchange("POST", path, {**bearer, "content-type": JSON}.items(), wanted)
    assert answer.status == 200, answer
    return urlsplit(answer.json()["upload_url"]).path
