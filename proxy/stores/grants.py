"""Grants: credits that pay for calls where a quota of a tenant or of one of its subjects has not enough left.

A subject's grant pays in the place of the subject's quotas, and a tenant's in the place of the tenant's: what it pays
does not count there. What a grant paid stands on an account of its own, which the ledger locks and writes as any other.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from proxy.clock import LAST_SECOND
from proxy.stores.audit import Author
from proxy.stores.ledger import TENANT_ITSELF, Account, Bucket, Charge, Exhausted, Job

GRANT_PREFIX = " grant "
#: The windows of the accounts of grants: in the place of whose quotas they pay.
TENANT_GRANT, SUBJECT_GRANT = "tenant grant", "subject grant"
GRANT_WINDOWS = frozenset([TENANT_GRANT, SUBJECT_GRANT])
#: How many grants of one holder a call can spend: as many as the parameters of a statement have room for.
MOST_SPENT = 10
_UNUSED = Account()


class GrantHolder(NamedTuple):
    """Whose quotas of a unit grants stand in for; `subject` is '' for the tenant's own."""

    tenant: str
    subject: str
    unit: str


@dataclass(frozen=True)
class Grant:
    """A credit of one unit.

    Attributes:
        subject: '' for one of the tenant itself.
        amount: in millionths.
        expires_at: in seconds since 1970 UTC; None if it never does.
        key_hash: of the Idempotency-Key with which it was given.
    """

    id: str
    tenant: str
    subject: str
    unit: str
    amount: int
    reason: str
    created_at: float
    expires_at: float | None = None
    key_hash: str | None = None

    @property
    def bucket(self) -> Bucket:
        """The account of what it paid. Its window begins when the grant ends, and then it can be removed."""
        window = SUBJECT_GRANT if self.subject else TENANT_GRANT
        end = LAST_SECOND if self.expires_at is None else min(LAST_SECOND, math.ceil(self.expires_at))
        return Bucket(self.tenant, GRANT_PREFIX + self.id, self.unit, window, end)

    def is_open(self, at: float) -> bool:
        return self.expires_at is None or self.expires_at > at


class GrantStanding(NamedTuple):
    """A grant, and what calls took from it."""

    grant: Grant
    account: Account

    @property
    def left(self) -> int:
        return self.grant.amount - sum(self.account)


@dataclass(frozen=True)
class GrantFilter:
    """Which grants of a tenant a listing has.

    Attributes:
        subjects: '' for those of the tenant itself; None for all.
        open_at: only those that have not expired then and are not used up; None for all.
        after: time of creation and id of the last grant of the page before.
    """

    tenant: str
    subjects: Sequence[str] | None = None
    open_at: float | None = None
    after: tuple[float, str] | None = None


class GrantStore(Protocol):
    """Grants: credits that pay for calls where a quota is used up."""

    async def add(self, grant: Grant, *, by: Author) -> GrantStanding:
        """Add a grant, unless its key was used before: then give the grant that was added with it.

        Raises:
            NotFound: the tenant was deleted meanwhile.
        """

    async def find(self, tenant: str, key_hash: str) -> GrantStanding | None:
        """Find the grant that a tenant was given with a key."""

    async def list_grants(self, wanted: GrantFilter, most: int) -> Sequence[GrantStanding]:
        """List grants, the newest first."""

    async def list_spendable(self, job: Job) -> Mapping[GrantHolder, Sequence[GrantStanding]]:
        """List the grants that a call could spend now, of each holder in their order."""


def grant_window(bucket: Bucket) -> str | None:
    """Return the window of the grants that pay in the place of an account, or of a grant's own account."""
    name = bucket.subject
    if name in ("", TENANT_ITSELF):
        return TENANT_GRANT
    if not name.startswith(" "):
        return SUBJECT_GRANT
    return bucket.window if bucket.window in GRANT_WINDOWS else None


def holder_of(bucket: Bucket) -> GrantHolder | None:
    """Return whose grants pay in the place of an account; None if no grant does."""
    window = grant_window(bucket)
    if window is None or bucket.window in GRANT_WINDOWS:
        return None
    return GrantHolder(bucket.tenant, "" if window == TENANT_GRANT else bucket.subject, bucket.unit)


def find_missing(
    charges: Iterable[Charge],
    accounts: Mapping[Bucket, Account],
    granted: Mapping[GrantHolder, Sequence[GrantStanding]],
) -> dict[GrantHolder, int] | Exhausted:
    """Find how much grants are to pay of a call, by holder; or the first account for which they have too little.

    Accounts that are missing were never used. If grants have not all that is missing of what the call reserves, it is
    enough that the account has what the call needs. What it reserves then leads beyond the limit, and nothing is left
    for others until enough is freed: so one call at a time can use what is not there.
    """
    missing: dict[GrantHolder, int] = {}
    for bucket, amount, limit, _, needed in charges:
        account = accounts.get(bucket, _UNUSED)
        left = limit - account.used - account.reserved
        if amount > left:
            is_enough = needed is not None and needed <= left
            left, holder = max(0, left), holder_of(bucket)
            in_grants = sum(one.left for one in granted.get(holder, ())) if holder else 0
            # A call that takes nothing is refused too where more was used than there is, and no grant has anything.
            if holder is not None and 0 < in_grants >= amount - left:
                missing[holder] = max(amount - left, missing.get(holder, 0))
            elif not is_enough:
                return Exhausted(bucket, left + in_grants)
    return missing


def pay_with_grants(
    charges: Iterable[Charge],
    missing: Mapping[GrantHolder, int],
    granted: Mapping[GrantHolder, Sequence[GrantStanding]],
) -> tuple[Charge, ...]:
    """Let grants pay what is missing, in the place of all quotas of their holder."""
    own = [one._replace(amount=one.amount - _missing_of(one, missing)) for one in charges]
    return (*own, *(one for holder, amount in missing.items() for one in _spend(granted[holder], amount)))


def _missing_of(charge: Charge, missing: Mapping[GrantHolder, int]) -> int:
    """Return how much of a charge grants pay."""
    holder = holder_of(charge.bucket)
    return 0 if holder is None else min(charge.amount, missing.get(holder, 0))


def _spend(grants: Iterable[GrantStanding], amount: int) -> list[Charge]:
    """Take an amount, which must be there, from grants in their order."""
    charges = []
    for grant, left in ((standing.grant, standing.left) for standing in grants):
        if part := min(amount, left):
            charges.append(Charge(grant.bucket, part, grant.amount))
            amount -= part
    return charges


def sum_granted(charges: Sequence[Charge], used: Mapping[str, int]) -> Counter[tuple[str, str]]:
    """Sum what grants pay of what a call used, by the window of their accounts and the unit."""
    paid: Counter[tuple[str, str]] = Counter()
    if any(bucket.window in GRANT_WINDOWS for bucket, *_ in charges):
        for (bucket, *_), share in zip(charges, split_use(charges, used), strict=True):
            if bucket.window in GRANT_WINDOWS and share:
                paid[bucket.window, bucket.unit] += share
    return paid


def split_use(charges: Sequence[Charge], used: Mapping[str, int]) -> list[int]:
    """Split what a call used among its charges.

    Quotas pay first, so that grants get back what was not needed of them; the grant that was spent last gets it first.
    What a call used beyond its reservation is the quotas' to pay.
    """
    granted: Counter[tuple[str | None, str]] = Counter()
    for bucket, amount, *_ in charges:
        if bucket.window in GRANT_WINDOWS:
            granted[bucket.window, bucket.unit] += amount
    if not granted:
        return [used.get(charge.bucket.unit, 0) for charge in charges]
    shares, from_grants = [], dict[tuple[str | None, str], int]()
    for bucket, amount, *_ in charges:
        key, whole = (grant_window(bucket), bucket.unit), used.get(bucket.unit, 0)
        if bucket.window in GRANT_WINDOWS:
            share = min(amount, from_grants[key])
            from_grants[key] -= share
        else:
            from_grants[key] = min(max(whole - amount, 0), granted[key])
            share = whole - from_grants[key]
        shares.append(share)
    return shares
