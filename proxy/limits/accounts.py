"""The accounts of quotas: whose they are, and in which window they lie."""

from __future__ import annotations

import hashlib
from calendar import monthrange
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple

from proxy.networks import Peer, network
from proxy.stores.ledger import ADDRESS_PREFIX, SESSION_PREFIX, TENANT_ITSELF, Bucket
from proxy.tenants.caller import Caller
from proxy.tenants.terms import LIFETIME, SESSION, AccountLimit

#: No subject can be called this: it begins with a space.
ALL_GUESTS = " guests"
WINDOWS = ("minute", "hour", "day", "month")
#: Windows that are not of the calendar, and never filled again.
_ENDLESS = (LIFETIME, SESSION)


class Payer(NamedTuple):
    """Whose accounts a call is charged to.

    Attributes:
        subject: '' for the tenant itself.
        address: where the call comes from, as the rate limits count it.
        session_start: when the session was minted, in seconds since 1970 UTC; 0 for the tenant itself.
        tags: those of the session.
    """

    tenant: str
    subject: str
    address: str = ""
    session_start: float = 0.0
    session_id: str = ""
    tags: tuple[str, ...] = ()


def payer_of(caller: Caller, peer: Peer) -> Payer:
    """Return the payer of a call that comes from a peer."""
    session = caller.session
    if session is None:
        return Payer(caller.tenant.id, caller.subject, network(peer))
    return Payer(caller.tenant.id, caller.subject, network(peer), session.issued_at, session.id, session.tags)


def window_start(window: str, now: float) -> int:
    """Return the start of the calendar window, UTC, that a moment lies in; 0 for `lifetime`."""
    if window == LIFETIME:
        return 0
    return _window_start(window, int(now // 60))


@lru_cache(maxsize=64)
def _window_start(window: str, minute: int) -> int:
    moment = datetime.fromtimestamp(minute * 60, UTC)
    if window in ("hour", "day", "month"):
        moment = moment.replace(minute=0)
    if window in ("day", "month"):
        moment = moment.replace(hour=0)
    if window == "month":
        moment = moment.replace(day=1)
    return int(moment.timestamp())


def window_end(window: str, start: int) -> int | None:
    """Return the start of the window that follows this one; None if none does."""
    if window in _ENDLESS:
        return None
    moment = datetime.fromtimestamp(start, UTC)
    days = monthrange(moment.year, moment.month)[1]
    length = {"minute": timedelta(minutes=1), "hour": timedelta(hours=1), "day": timedelta(days=1)}
    return int((moment + length.get(window, timedelta(days=days))).timestamp())


def bucket_of(limit: AccountLimit, payer: Payer, now: float) -> Bucket:
    """Return the account that a limit is about, for a call made now."""
    start = int(payer.session_start) if limit.window == SESSION else window_start(limit.window, now)
    return Bucket(payer.tenant, _account_name(limit.per, payer), limit.unit, limit.window, start)


def buckets_of(limits: tuple[AccountLimit, ...], payer: Payer, now: float) -> tuple[Bucket, ...]:
    """Return the accounts that limits are about, in order. A payer's next call in the same minute has the same ones."""
    return _buckets_in(limits, payer, int(now // 60))


@lru_cache(maxsize=1024)
def _buckets_in(limits: tuple[AccountLimit, ...], payer: Payer, minute: int) -> tuple[Bucket, ...]:
    return tuple(bucket_of(one, payer, minute * 60.0) for one in limits)


def _account_name(per: str, payer: Payer) -> str:
    if per == "subject":
        # The tenant's own calls, made with its key, have no subject: their account must not be that of the tenant.
        return payer.subject or TENANT_ITSELF
    if per == "address":
        # A digest: the account and the record of the call have no address in them that can be read.
        return ADDRESS_PREFIX + hashlib.blake2b(payer.address.encode(), digest_size=12).hexdigest()
    if per == "session":
        return SESSION_PREFIX + payer.session_id
    return "" if per == "tenant" else ALL_GUESTS
