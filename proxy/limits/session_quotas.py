"""What is left of the quotas of one session, as its answers say it."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

from proxy.errors import StoreUnavailable
from proxy.limits.accounts import Payer, bucket_of
from proxy.limits.usage import to_units
from proxy.stores.ledger import Account, Ledger
from proxy.telemetry.log_limit import LogLimit
from proxy.tenants.caller import Session, SessionQuota
from proxy.tenants.terms import SESSION, AccountLimit

#: In the state of a request: the quotas of its session, if that has some.
SESSION_QUOTAS = "session_quotas"
#: How long an answer waits for the ledger before it goes without.
READ_SECONDS = 1.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SessionQuotas:
    """Reads the accounts of a session whenever an answer begins: another process may have charged them.

    Attributes:
        log_limit: bounds the lines about a ledger that does not answer; one for all sessions.
    """

    ledger: Ledger
    session: Session
    log_limit: LogLimit

    async def raw_headers(self) -> list[tuple[bytes, bytes]]:
        """Give `Quota-Policy`, which names every quota, and `Quota`, what is left of each; nothing if that is unknown.

        They have the form of the `RateLimit` headers (IETF draft-ietf-httpapi-ratelimit-headers).
        """
        if (left := await self._read()) is None:
            return []
        policy = ", ".join(f'"{unit}";q={_to_number(limit)}' for unit, limit in self.session.quotas)
        quota = ", ".join(f'"{one.unit}";r={_to_number(rest)}' for one, rest in left)
        return [(b"quota-policy", policy.encode("ascii")), (b"quota", quota.encode("ascii"))]

    async def document(self) -> dict[str, Any]:
        """Give what is left as a member of a document; nothing if that is unknown."""
        if (left := await self._read()) is None:
            return {}
        rows = [{"unit": one.unit, "limit": to_units(one.limit), "left": to_units(rest)} for one, rest in left]
        return {"quotas": rows}

    async def _read(self) -> list[tuple[SessionQuota, int]] | None:
        session = self.session
        payer = Payer(session.tenant, session.subject, "", session.issued_at, session.id)
        buckets = [bucket_of(AccountLimit("session", unit, SESSION, limit), payer, 0) for unit, limit in session.quotas]
        try:
            async with asyncio.timeout(READ_SECONDS):
                accounts = await self.ledger.accounts(buckets)
        except (StoreUnavailable, TimeoutError) as problem:
            if self.log_limit.admits(session.tenant):
                fields = {"tenant": session.tenant, "problem": type(problem).__name__}
                _log.warning("quotas of a session not read", extra={"log_fields": fields})
            return None
        standing = [accounts.get(bucket, Account()) for bucket in buckets]
        return [(one, max(0, one.limit - sum(account))) for one, account in zip(session.quotas, standing, strict=True)]


def _to_number(millionths: int) -> str:
    """Write a number of a structured field (RFC 9651): with up to three decimal places, rounded down."""
    whole, rest = divmod(millionths // 1000, 1000)
    return f"{whole}.{rest:03d}".rstrip("0").rstrip(".")
