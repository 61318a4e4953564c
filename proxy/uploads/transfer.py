"""The transfer of a file's bytes: its quota is reserved before, kept alive while they flow, and settled after."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from starlette.requests import Request
from starlette.types import Message, Receive

from proxy.clock import Clock
from proxy.errors import BadRequest, BadUpstream, ProxyError
from proxy.http.disconnect import CallerGone, ReceivedDisconnect, cancel_on_disconnect
from proxy.limits.accounts import Payer
from proxy.limits.quotas import MILLION, UPLOAD, Quotas, new_job
from proxy.limits.retries import RetryAllowance
from proxy.networks import network
from proxy.stores.ledger import Job, Ledger
from proxy.stores.uploads import Upload
from proxy.tenants.terms import Terms
from proxy.uploads.body import enforce_size

#: How long a reservation outlives its last renewal: after a crash it is free then. And how often it is renewed.
LIFE_SECONDS = 120.0
RENEW_SECONDS = 30.0
UPLOAD_BYTES = "upload_bytes"
_log = logging.getLogger(__name__)
T = TypeVar("T")
Content = AsyncGenerator[bytes, None]
Confirm = Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class Transfer:
    """So many bytes of one user's, and the terms that bind them.

    Attributes:
        size: how many, or the most there can be.
        least: the fewest there can be; None if the size is known.
    """

    payer: Payer
    terms: Terms
    size: int
    least: int | None = None


def transfer_of(request: Request, upload: Upload, terms: Terms, size: int) -> Transfer:
    """Make the transfer of bytes that a request sends to a slot."""
    address = network(request.scope["client"])
    started_at, session_id = upload.issued_at or 0.0, upload.session_id or ""
    payer = Payer(upload.tenant, upload.subject, address, started_at, session_id, upload.tags)
    return Transfer(payer, terms, size)


class Transfers:
    """Takes files to fal, and books their bytes."""

    def __init__(self, quotas: Quotas, ledger: Ledger, retries: RetryAllowance, clock: Clock) -> None:
        self._quotas = quotas
        self._ledger = ledger
        self._retries = retries
        self._clock = clock

    async def run(
        self,
        request: Request,
        transfer: Transfer,
        content: Content,
        send: Callable[[Content], Awaitable[T]],
        confirm: Confirm,
    ) -> T:
        """Let `send` take the content to fal, and book its bytes if it says that fal has them.

        Bytes that fal does not have can be sent again; where the caller broke off, they are free only so often
        (`RetryAllowance`). `confirm` is asked before the last piece goes out, or before the end if it is not known
        which piece is the last, and may still break off.

        Raises:
            QuotaExceeded: so many are not left.
            BadRequest: they are not as many as was said.
            CallerGone: the caller hung up; fal sees its connection close.
        """
        job = self._new_job(transfer)
        await self._quotas.reserve(job)
        used = None
        pieces = enforce_size(content, transfer.size, transfer.least)
        flow = _Flow(pieces, transfer.size, confirm, _Renewal(self._ledger, self._clock, job))
        try:
            result = await cancel_on_disconnect(ReceivedDisconnect(flow.receive_after(request)), send(flow.pieces()))
            if flow.handed < (transfer.size if transfer.least is None else transfer.least):
                raise BadUpstream("fal's file store answered before it had the file.", scope="upstream")
            used = {UPLOAD_BYTES: flow.handed * MILLION}
        except (CallerGone, BadRequest):
            used = self._charge_lost(transfer, min(flow.handed, transfer.size))
            raise
        finally:
            await asyncio.shield(self._quotas.settle(job.id, used))
        return result

    def _new_job(self, transfer: Transfer) -> Job:
        now = self._clock.now()
        amounts = {UPLOAD_BYTES: transfer.size * MILLION}
        job = new_job(transfer.terms, transfer.payer, UPLOAD, UPLOAD, amounts, now)
        return job._replace(expires_at=now + LIFE_SECONDS)

    def _charge_lost(self, transfer: Transfer, size: int) -> dict[str, int] | None:
        """Return what to book of an upload that its caller broke off; None for nothing."""
        largest = transfer.terms.plan.uploads.max_bytes
        paid = self._retries.charge(transfer.payer.tenant, transfer.payer.subject, size, largest)
        return {UPLOAD_BYTES: paid * MILLION} if paid else None


class _Renewal:
    """Renews the reservation of a transfer while it goes on."""

    def __init__(self, ledger: Ledger, clock: Clock, job: Job) -> None:
        self._ledger = ledger
        self._clock = clock
        self._job = job
        self._renewed_at = clock.now()

    async def renew_if_due(self) -> None:
        now = self._clock.now()
        if now - self._renewed_at < RENEW_SECONDS:
            return
        self._renewed_at = now
        try:
            await self._ledger.renew_jobs([self._job.id], now, now + LIFE_SECONDS)
        except ProxyError as problem:
            _log.warning("upload not renewed", extra={"log_fields": {"problem": problem.code}})


class _Flow:
    """A content on its way.

    Attributes:
        handed: bytes handed out so far.
    """

    def __init__(self, content: Content, size: int, confirm: Confirm, renewal: _Renewal) -> None:
        self.handed = 0
        self._size = size
        self._confirm = confirm
        self._renewal = renewal
        self._content = content
        self._ended = asyncio.Event()

    async def pieces(self) -> Content:
        async for piece in self._content:
            self.handed += len(piece)
            if self.handed == self._size:
                await self._confirm()
            yield piece
            await self._renewal.renew_if_due()
        if self.handed != self._size:
            # Where the size is known at the end only, the file is not whole at fal before this ends.
            await self._confirm()
        self._ended.set()

    def receive_after(self, request: Request) -> Receive:
        """Receive what the caller sends after its file: nothing, unless it hangs up. Until then, the transfer reads."""

        async def receive() -> Message:
            await self._ended.wait()
            return await request.receive()

        return receive
