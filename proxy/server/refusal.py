"""An answer of the server itself, before there is a request that the application could answer."""

from __future__ import annotations

import secrets
from http import HTTPStatus

from proxy.errors import ProxyError
from proxy.http.error_response import respond


def raw_response(error: ProxyError) -> bytes:
    """Return the bytes of a refusal in the one shape of errors, which closes its connection."""
    request_id = f"server-{secrets.token_hex(8)}"
    answer = respond(error, request_id)
    answer.headers["x-request-id"] = request_id
    # Where the application answers, it adds these to every answer.
    answer.headers.update({"connection": "close", "cache-control": "no-store", "x-content-type-options": "nosniff"})
    head = [b"HTTP/1.1 %d %s" % (answer.status_code, HTTPStatus(answer.status_code).phrase.encode())]
    head += [b"%s: %s" % pair for pair in answer.raw_headers]
    return b"\r\n".join(head) + b"\r\n\r\n" + bytes(answer.body)
