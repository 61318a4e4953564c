"""Uploaded files: small ones in memory, large ones spooled to disk, all of them together within a bound.

Of what is larger than any file should be, only size and digest are kept.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from typing import Any

import anyio
from anyio import SpooledTemporaryFile

IN_MEMORY_BYTES = 2**20
BLOCK_BYTES = 2**18
KEPT_FILE_BYTES = 256 * 2**20
KEPT_BYTES = 2**30
KEPT_FILES = 10_000


class StoredFile:
    """The bytes of one upload or of one part of it. Readers may overlap; a closed file reads as empty.

    Attributes:
        decision: what the access list says of strangers: `allow`, `hide` or `forbid`.
        is_kept: whether the bytes are, beside their number and digest.
    """

    def __init__(self, content_type: str) -> None:
        self.content_type = content_type
        self.expires_at = float("inf")
        self.decision = "allow"
        self.is_kept = True
        self.size = 0
        self._digest = hashlib.sha256()
        self._spool = SpooledTemporaryFile[bytes](max_size=IN_MEMORY_BYTES)
        self._turn = anyio.Lock()
        self._is_open = True

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    @property
    def etag(self) -> str:
        return f'"{self.sha256[:32]}"'

    async def write(self, data: bytes) -> None:
        self._digest.update(data)
        self.size += len(data)
        if self.is_kept and self.size > KEPT_FILE_BYTES:
            self.is_kept = False
            await self.close()
        elif self.is_kept:
            await self._spool.write(data)

    async def blocks(self) -> AsyncIterator[bytes]:
        at = 0
        while at < self.size:
            async with self._turn:
                if not self._is_open:
                    return
                await self._spool.seek(at)
                block = await self._spool.read(BLOCK_BYTES)
            at += len(block)
            yield block

    async def read(self) -> bytes:
        return b"".join([block async for block in self.blocks()])

    async def close(self) -> None:
        async with self._turn:
            self._is_open = False
            await self._spool.aclose()


class Files:
    """All files by their path below `/files`, and the parts of uploads that are not complete."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, StoredFile] = OrderedDict()
        self._announced: OrderedDict[str, tuple[str, float, str]] = OrderedDict()
        self._parts: OrderedDict[str, dict[int, StoredFile]] = OrderedDict()

    def new_path(
        self, name: str, content_type: str, lives_seconds: float = float("inf"), decision: str = "allow"
    ) -> str:
        """Make a path that was never used, ending in what is harmless of a file name; the rest is remembered."""
        path = f"/b/{secrets.token_hex(8)}/{re.sub(r'[^A-Za-z0-9._-]', '_', name)[-100:] or 'file'}"
        self._announced[path] = content_type, time.time() + lives_seconds, decision
        if len(self._announced) > KEPT_FILES:
            self._announced.popitem(last=False)
        return path

    def at(self, url_path: str) -> StoredFile | None:
        """Find the file that a URL's path points at, whatever host and prefix it was served under."""
        file = self._files.get(url_path.partition("/files")[2])
        return file if file is None or file.expires_at > time.time() else None

    async def put(self, path: str, stream: AsyncIterator[bytes], content_type: str | None = None) -> StoredFile:
        """Store a file; its type is the announced one unless another comes with the bytes."""
        announced, expires_at, decision = self._announced.get(path, ("", float("inf"), "allow"))
        file = await _store_stream(content_type or announced, stream)
        file.expires_at, file.decision = expires_at, decision
        await self._keep(path, file)
        return file

    async def put_part(self, upload: str, number: int, stream: AsyncIterator[bytes]) -> StoredFile:
        file = await _store_stream("", stream)
        parts = self._parts.setdefault(upload, {})
        if (old := parts.get(number)) is not None:
            await old.close()
        parts[number] = file
        if len(self._parts) > KEPT_FILES:
            await _close_all(self._parts.popitem(last=False)[1].values())
        return file

    async def complete(self, upload: str, path: str, named: Sequence[Any]) -> StoredFile:
        """Join the parts, by number, into the file.

        Raises:
            ValueError: a part is missing, not named, or not the one that its etag says.
        """
        parts = self._parts.get(upload, {})
        if not parts or {_parse_part(part) for part in named} != {(n, part.etag) for n, part in parts.items()}:
            raise ValueError("the parts do not match what was uploaded")

        async def join_parts() -> AsyncIterator[bytes]:
            for number in sorted(parts):
                async for block in parts[number].blocks():
                    yield block

        file = await self.put(path, join_parts())
        await _close_all(self._parts.pop(upload).values())
        return file

    async def close(self) -> None:
        for parts in self._parts.values():
            await _close_all(parts.values())
        await _close_all(self._files.values())
        self._parts.clear()
        self._files.clear()

    async def _keep(self, path: str, file: StoredFile) -> None:
        if (old := self._files.pop(path, None)) is not None:
            await old.close()
        self._files[path] = file
        while len(self._files) > KEPT_FILES or self._kept_bytes() > KEPT_BYTES:
            await self._files.popitem(last=False)[1].close()

    def _kept_bytes(self) -> int:
        return sum(file.size for file in self._files.values() if file.is_kept)


async def _store_stream(content_type: str, stream: AsyncIterator[bytes]) -> StoredFile:
    file = StoredFile(content_type)
    try:
        async for chunk in stream:
            await file.write(chunk)
    except BaseException:
        with anyio.CancelScope(shield=True):
            await file.close()
        raise
    return file


async def _close_all(files: Any) -> None:
    for file in list(files):
        await file.close()


def _parse_part(part: Any) -> tuple[int, str]:
    try:
        return int(part["partNumber"]), str(part["etag"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError("a part is {partNumber, etag}") from error
