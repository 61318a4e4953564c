"""Fetching what `image_url` points at: a data URI, a file uploaded here, or an http server on the loopback."""

from __future__ import annotations

import base64
import binascii
import ipaddress
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from urllib.parse import SplitResult, unquote_to_bytes, urlsplit

import anyio.to_thread
import httpx

from proxy.sandbox.files import Files

MAX_PICTURE_BYTES = 64 * 2**20
DOWNLOAD_SECONDS = 10.0


class Unloadable(Exception):
    """The picture cannot be had; `kind` is fal's name for the reason."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def loader(files: Files) -> Callable[[str], Awaitable[bytes]]:
    """Make the function that turns an `image_url` into bytes, or raises `Unloadable`."""

    async def load(url: str) -> bytes:
        if url[:5].lower() == "data:":
            return await anyio.to_thread.run_sync(_inline, url)
        parts = _split(url)
        if (file := files.at(parts.path)) is not None:
            return await file.read()
        if parts.scheme != "http" or not is_loopback(parts.hostname or ""):
            raise Unloadable("file_download_error", "Failed to download the file: only the loopback is reached")
        return await _download(url)

    return load


def _inline(uri: str) -> bytes:
    head, comma, payload = uri.partition(",")
    try:
        if not comma:
            raise ValueError("a data URI has a comma")
        data = unquote_to_bytes(payload)
        return base64.b64decode(data, validate=True) if head.lower().endswith(";base64") else data
    except (ValueError, binascii.Error) as error:
        raise Unloadable("image_load_error", "Failed to load the image: not a valid data URI") from error


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError as error:
        raise Unloadable("file_download_error", "Failed to download the file: not a valid URL") from error


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _download(url: str) -> bytes:
    try:
        async with _open(url) as answer:
            answer.raise_for_status()
            data = bytearray()
            async for chunk in answer.aiter_bytes():
                data += chunk
                if len(data) > MAX_PICTURE_BYTES:
                    raise Unloadable("file_too_large", f"The file is larger than {MAX_PICTURE_BYTES} bytes")
            return bytes(data)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Unloadable("file_download_error", "Failed to download the file") from error


@asynccontextmanager
async def _open(url: str) -> AsyncIterator[httpx.Response]:
    # No redirects: the next hop might leave the loopback.
    async with httpx.AsyncClient(trust_env=False, timeout=DOWNLOAD_SECONDS) as client, client.stream("GET", url) as it:
        yield it
