"""A backend that gives its signed-in users sessions of fal-proxy. The tenant key stays here; standard library only.

FAL_PROXY_URL=https://ai.example.com FAL_PROXY_TENANT_KEY=fpk_… python mint.py
curl -u alice:wonderland -X POST http://127.0.0.1:5000/session
"""

import base64
import hmac
import json
import os
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PROXY_URL, TENANT_KEY = os.environ["FAL_PROXY_URL"], os.environ["FAL_PROXY_TENANT_KEY"]
#: Stands for your own login: whatever it is, it must say who the user is.
USERS = {"alice": "wonderland", "bob": "builder"}


def signed_in_user(authorization: str) -> str | None:
    scheme, _, encoded = authorization.partition(" ")
    if scheme != "Basic":
        return None
    name, _, password = base64.b64decode(encoded).decode().partition(":")
    matches = hmac.compare_digest(USERS.get(name, "").encode(), password.encode())
    return name if matches and name in USERS else None


def mint(user: str) -> bytes:
    """A session for one user: the JSON with `token` and `expires_at`."""
    request = urllib.request.Request(
        f"{PROXY_URL}/v1/sessions",
        json.dumps({"subject": user, "ttl_seconds": 900}).encode(),
        {"authorization": f"Bearer {TENANT_KEY}", "content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read()


class Backend(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        user = signed_in_user(self.headers.get("authorization", ""))
        if self.path != "/session":
            self.answer(404, b'{"detail": "There is only /session."}')
        elif user is None:
            self.answer(401, b'{"detail": "Sign in first."}')
        else:
            self.answer(201, mint(user))

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.send_header("cache-control", "no-store")
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "5000"))), Backend).serve_forever()
