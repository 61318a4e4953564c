"""Files on their way to fal, as they are stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Upload:
    """One file on its way to fal. `id` and `upstream_url` open it for all who know them, so neither is shown.

    Attributes:
        upstream_url: fal's signed URL; sealed while it is kept.
        size: of the whole file, once fal has it; None before that.
        in_parts: whether it comes in parts that are joined at the end, or at once.
        session_id, issued_at, newest_revocation: of the session that asked for it, which may be revoked; of a tenant
            key, its id alone.
        tags: those of that session.
    """

    id: str = field(repr=False)
    tenant: str
    subject: str
    content_type: str
    file_url: str
    upstream_url: str = field(repr=False)
    max_bytes: int
    expires_at: float
    plan: str
    size: int | None = None
    in_parts: bool = False
    session_id: str | None = None
    issued_at: float | None = None
    newest_revocation: int | None = None
    tags: tuple[str, ...] = ()


#: The number of the only part of a file that comes at once.
WHOLE = 0


@dataclass(frozen=True)
class Part:
    """One attempt to send a part of a file, or the whole of it.

    Attributes:
        attempt: tells it from later ones at the same part: only the latest counts.
        etag: fal's, once fal has the part.
    """

    upload: str = field(repr=False)
    number: int
    attempt: str
    size: int
    etag: str | None = None


class UploadStore(Protocol):
    """Files on their way. A part is begun before its bytes are sent and landed after; together they fit in the file."""

    async def add(self, upload: Upload) -> None: ...

    async def get(self, upload_id: str) -> Upload | None: ...

    async def begin(self, part: Part) -> bool | None:
        """Note an attempt, in the place of an earlier one; False if the file would be too large, None if it is over."""

    async def is_current(self, part: Part) -> bool:
        """Return whether the attempt is still the latest, and the file not over."""

    async def land(self, part: Part, etag: str) -> bool:
        """Note that fal has the part; False if another attempt began meanwhile, or the file is over: this one is void.

        With the whole of a file, the file is over too.
        """

    async def drop(self, part: Part) -> None:
        """Note that the attempt failed.

        That of a file that is over stays: it landed, and only the answer to that was lost.
        """

    async def list_parts(self, upload_id: str) -> Sequence[Part]:
        """List the parts that fal has, by their numbers."""

    async def finish(self, upload_id: str, size: int) -> bool:
        """Note that fal has the whole file; False if it was finished before."""
