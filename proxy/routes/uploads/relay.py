"""The relay of a file's bytes: its quota is reserved before, kept alive while they flow, and settled after."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from starlette.requests import Request
from starlette.types import Message, Receive

from proxy.errors import BadRequest, BadUpstream, ProxyError
from proxy.http.disconnect import CallerGone, ReceivedDisconnect, cancel_on_disconnect
from proxy.limits.contents import HEAD_BYTES, check_head
from proxy.limits.quotas import MILLION, UPLOAD, new_job
from proxy.routes.services import Services
from proxy.routes.uploads.incoming import exactly, peeked
from proxy.stores.ledger import Job
from proxy.tenants.terms import Terms

#: How long a reservation outlives its last sign of life: after a crash it is free then. And how often there is one.
LIFE_SECONDS = 120.0
SIGN_SECONDS = 30.0
UPLOAD_BYTES = "upload_bytes"
_log = logging.getLogger(__name__)
T = TypeVar("T")
Content = AsyncGenerator[bytes, None]


@dataclass(frozen=True)
class Transfer:
    """What is to be relayed: so many bytes of one user's, and the terms that bind them.

    Attributes:
        size: how many, or the most there can be.
        least: the fewest there can be; None if the size is known.
    """

    tenant: str
    subject: str
    terms: Terms
    size: int
    least: int | None = None


async def checked(content: Content, content_type: str) -> Content:
    """The content, once its first bytes were those of its type.

    Raises:
        BadRequest: there are none.
        UnsupportedMediaType: they are not.
    """
    head, whole = await peeked(content, HEAD_BYTES)
    if not head:
        raise BadRequest("The file is empty.")
    check_head(head, content_type)
    return whole


async def relay(
    services: Services,
    request: Request,
    transfer: Transfer,
    content: Content,
    send: Callable[[Content], Awaitable[T]],
    confirm: Callable[[], Awaitable[None]] | None = None,
) -> T:
    """Let `send` take the content to fal, and book its bytes if it says that fal has them.

    Bytes that fal does not have can be sent again; where the caller broke off, they are free only so often
    (`RetryAllowance`). `confirm` is asked before the last piece goes out, or before the end if it is not known which
    piece is the last, and may still break off.

    Raises:
        QuotaExceeded: so many are not left.
        BadRequest: they are not as many as was said.
        CallerGone: the caller hung up; fal sees its connection close.
    """
    job = _job(services, transfer)
    await services.bookkeeper.reserve(job)
    used = None
    flow = _Flow(services, job, exactly(content, transfer.size, transfer.least), transfer.size, confirm)
    try:
        result = await cancel_on_disconnect(ReceivedDisconnect(flow.after(request)), send(flow.pieces()))
        if flow.handed < (transfer.size if transfer.least is None else transfer.least):
            raise BadUpstream("fal's file store answered before it had the file.", scope="upstream")
        used = {UPLOAD_BYTES: flow.handed * MILLION}
    except (CallerGone, BadRequest):
        used = _lost(services, transfer, min(flow.handed, transfer.size))
        raise
    finally:
        await asyncio.shield(services.bookkeeper.settle(job.id, used))
    return result


def _lost(services: Services, transfer: Transfer, size: int) -> dict[str, int] | None:
    """What is booked of an upload that its caller broke off."""
    largest = transfer.terms.plan.uploads.max_bytes
    paid = services.retries.charge(transfer.tenant, transfer.subject, size, largest)
    return {UPLOAD_BYTES: paid * MILLION} if paid else None


def _job(services: Services, transfer: Transfer) -> Job:
    now = services.clock.now()
    amounts = {UPLOAD_BYTES: transfer.size * MILLION}
    job = new_job(transfer.terms, transfer.tenant, transfer.subject, UPLOAD, UPLOAD, amounts, now)
    return replace(job, expires_at=now + LIFE_SECONDS)


class _Flow:
    """A content on its way. While it flows the ledger hears of it now and then, so that its reservation lives on.

    Attributes:
        handed: bytes handed out so far.
    """

    def __init__(
        self,
        services: Services,
        job: Job,
        content: Content,
        size: int,
        confirm: Callable[[], Awaitable[None]] | None,
    ) -> None:
        self.handed = 0
        self._size = size
        self._confirm = confirm
        self._services = services
        self._job = job
        self._content = content
        self._ended = asyncio.Event()
        self._told_at = services.clock.now()

    async def pieces(self) -> Content:
        async for piece in self._content:
            self.handed += len(piece)
            if self.handed == self._size and self._confirm is not None:
                await self._confirm()
            yield piece
            if self._services.clock.now() - self._told_at >= SIGN_SECONDS:
                await self._tell()
        if self.handed != self._size and self._confirm is not None:
            # Where the size is known at the end only, the file is not whole at fal before this ends.
            await self._confirm()
        self._ended.set()

    async def _tell(self) -> None:
        self._told_at = now = self._services.clock.now()
        try:
            await self._services.stores.ledger.heard_of(self._job.id, now, now + LIFE_SECONDS)
        except ProxyError as problem:
            _log.warning("upload not renewed", extra={"facts": {"problem": problem.code}})

    def after(self, request: Request) -> Receive:
        """What the caller sends when its file is through: nothing, unless it hangs up. Until then, the relay reads."""

        async def receive() -> Message:
            await self._ended.wait()
            return await request.receive()

        return receive
