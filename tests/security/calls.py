"""Calls to fal as a caller makes them on each surface, given as a path of the host form."""

from __future__ import annotations

from urllib.parse import urlsplit

from tests.security.hostile import NEXT
from tests.security.shape import BODY
from tests.security.wire import Answer, Wire

SURFACES = ("protocol", "session in the path", "hosts")
JSON = "application/json"
_HOSTS = {"run": "https://fal.run", "queue": "https://queue.fal.run", "rest": "https://rest.fal.ai"}


def call(
    wire: Wire,
    surface: str,
    token: str,
    method: str,
    path: str,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
) -> Answer:
    """Make a call with a session or a tenant key; `path` is such as `run/fal-ai/llava-next`."""
    host, _, rest = path.partition("/")
    where, credential = f"/fal/{path}", {"authorization": f"Key {token}"}
    if surface != "hosts":
        where, credential["x-fal-target-url"] = "/api/fal/proxy", f"{_HOSTS[host]}/{rest}"
    if surface == "session in the path":
        where = f"/s/{token}{where}"
        del credential["authorization"]
    return wire.exchange(method, where, {"content-type": JSON, **credential, **(headers or {})}.items(), body)


def submit(wire: Wire, token: str, endpoint: str = NEXT) -> str:
    """A job of the caller's own: its id."""
    answer = call(wire, "hosts", token, "POST", f"queue/{endpoint}", BODY)
    assert answer.status == 200, answer
    return str(answer.json()["request_id"])


def slot(wire: Wire, token: str) -> str:
    """A place for a PNG: the path to PUT it to."""
    wanted = b'{"content_type":"image/png","file_name":"a.png"}'
    answer = call(wire, "hosts", token, "POST", "rest/storage/upload/initiate", wanted)
    assert answer.status == 200, answer
    return urlsplit(answer.json()["upload_url"]).path
