"""Sessions of fal-proxy for the signed-in users of your backend, minted with your tenant key.

Copy this file beside your code. It needs nothing but Python 3.9 or newer.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, Request, build_opener

_UNAVAILABLE = "Sessions are not available at the moment."
_TIMEOUT_SECONDS = 10
_log = logging.getLogger(__name__)

#: The body, the status and the headers of an answer.
Answer = tuple[bytes, int, dict[str, str]]


class _NoRedirects(HTTPRedirectHandler):
    """Keeps the tenant key from going to another host."""

    def redirect_request(self, *_: object) -> None:
        return None


_opener = build_opener(_NoRedirects)


def session_answer(user: object, *, ttl_seconds: int = 900, endpoints: Sequence[str] | None = None) -> Answer:
    """Answer a request of your user with a session of fal-proxy. Without a user the answer is 401."""
    if not user:
        return _answer(401, {"error_type": "signed_out", "message": "Sign in first."})
    form = {"subject": str(user), "ttl_seconds": ttl_seconds, "endpoints": endpoints}
    try:
        status, body = _mint(form)
        if status == 201:
            return _answer(201, {"token": body["token"], "expires_at": body["expires_at"]})
        if "retry_after" in body:
            return _answer_later(body)
        # Any other refusal is a mistake of this backend, not of its user.
        reason = f"{status} {body.get('error_type')} (request {body.get('request_id')}): {body.get('message')}"
    except (OSError, ValueError, HTTPException, KeyError) as error:
        reason = str(error)
    _log.error("fal-proxy gave no session: %s", reason)
    return _answer(503, {"error_type": "session_unavailable", "message": _UNAVAILABLE})


def _mint(form: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    url, key = os.environ.get("FAL_PROXY_URL"), os.environ.get("FAL_PROXY_TENANT_KEY", "")
    # An error about a header would show the key.
    if not url or not re.fullmatch("[!-~]+", key):
        raise ValueError("set FAL_PROXY_URL and FAL_PROXY_TENANT_KEY")
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    request = Request(f"{url.rstrip('/')}/v1/sessions", json.dumps(form).encode(), headers)
    try:
        with _opener.open(request, timeout=_TIMEOUT_SECONDS) as answer:
            return answer.status, json.load(answer)
    except HTTPError as refusal:
        with refusal:
            return refusal.code, json.load(refusal)


def _answer_later(body: Mapping[str, Any]) -> Answer:
    passed = {name: body[name] for name in ("error_type", "message", "retry_after")}
    return _answer(503, passed, {"retry-after": str(body["retry_after"])})


def _answer(status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Answer:
    shared = {"content-type": "application/json", "cache-control": "no-store"}
    return json.dumps(body).encode(), status, {**shared, **(headers or {})}
