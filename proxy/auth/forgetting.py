"""Forgets end users."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import replace
from functools import partial

from proxy.auth.revocations import revoke_by_name
from proxy.clock import Clock
from proxy.stores.audit import Author
from proxy.stores.base import Stores
from proxy.stores.directory import digest_subject
from proxy.stores.removal import Pseudonym
from proxy.tenants.directory import Directory
from proxy.tenants.removal import SPREAD_SECONDS, repeat

#: What begins so is no name of a user: names have no space at their ends.
PREFIX = " forgotten "


class Forgetting:
    """Ends a user's sessions, and then clears the name from the database. What was used stays, under a pseudonym."""

    def __init__(self, directory: Directory, stores: Stores, clock: Clock) -> None:
        self._directory = directory
        self._stores = stores
        self._clock = clock

    async def forget(self, tenant: str, subject: str, *, by: Author) -> None:
        """Forget a user. Return when no row has the name.

        Raises:
            StoreUnavailable: the database does not answer. What was cleared before stays so.
        """
        named = revoke_by_name(tenant, None, subject, self._clock.now())
        revocation = replace(named, subject=None, subject_digest=digest_subject(tenant, subject))
        await self._stores.directory.forget_subject(revocation, subject, by=by)
        await self._directory.refresh_now()
        await asyncio.sleep(SPREAD_SECONDS)
        pseudonym = Pseudonym(tenant, subject, PREFIX + secrets.token_hex(8))
        await repeat(partial(self._stores.removal.forget_some, pseudonym))
        await self._stores.removal.wipe()
