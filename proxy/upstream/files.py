"""Files at fal: where one may go, and the way there by the signed URL that fal gave. The key is not needed for that."""

from __future__ import annotations

from collections.abc import AsyncIterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import orjson

from proxy.errors import BadUpstream
from proxy.upstream.client import Answer, Upstream
from proxy.upstream.headers import JSON
from proxy.upstream.relay import read_body

#: fal's etags are short; what is longer is something else.
MAX_ETAG_LENGTH = 200


@dataclass(frozen=True)
class UploadDestination:
    """Where a file will lie, and the signed URL that opens that place: it is never shown."""

    file_url: str
    upload_url: str = field(repr=False)


async def put(upstream: Upstream, url: str, content_type: str, size: int, content: AsyncIterable[bytes]) -> Answer:
    """Send a whole file; the answer's body is still to be read.

    Raises:
        UpstreamUnavailable, BadUpstream, UpstreamTimeout: fal does not have it, and it can be sent again.
    """
    headers = {"content-type": content_type, "content-length": str(size)}
    return await upstream.to_files("PUT", url, headers, content)


async def put_part(upstream: Upstream, url: str, number: int, size: int, content: AsyncIterable[bytes]) -> str:
    """Send one part of a file; return its etag.

    Raises:
        UpstreamUnavailable, BadUpstream, UpstreamTimeout: as `put`.
    """
    response = await upstream.to_files("PUT", _append_step(url, str(number)), {"content-length": str(size)}, content)
    etag = _etag(response.headers.get(b"etag"), await read_body(response, repeatable=True))
    if etag is None:
        raise BadUpstream("fal's file store accepted the part without an etag.", scope="upstream")
    return etag


async def complete(upstream: Upstream, url: str, etags: Sequence[tuple[int, str]]) -> None:
    """Let fal join the parts, given as their numbers and etags, in order.

    Raises:
        UpstreamUnavailable, BadUpstream, UpstreamTimeout: it did not; asking again does no harm.
    """
    body = orjson.dumps({"parts": [{"partNumber": number, "etag": etag} for number, etag in etags]})
    headers = {"content-type": JSON, "content-length": str(len(body))}
    await read_body(await upstream.to_files("POST", _append_step(url, "complete"), headers, body), repeatable=True)


def _append_step(url: str, name: str) -> str:
    """Add a step to the path of a signed URL: the signature in its query is valid there too."""
    parts = urlsplit(url)
    return parts._replace(path=f"{parts.path}/{name}").geturl()


def _etag(header: bytes | None, body: bytes) -> str | None:
    """Read an etag from the header, as the Python client does, or else from the body, as the JavaScript client does."""
    etag: Any = None if header is None else header.decode("latin-1")
    if etag is None:
        try:
            document = orjson.loads(body)
        except orjson.JSONDecodeError:
            return None
        etag = document.get("etag") if isinstance(document, Mapping) else None
    good = isinstance(etag, str) and etag.isascii() and etag.isprintable() and 0 < len(etag) <= MAX_ETAG_LENGTH
    return etag if good else None
