"""Who owns a job: the subject of a tenant that submitted it, for good.

A session that is narrowed to some endpoints sees its subject's jobs of these endpoints only. The tenant's own key can
cancel the jobs of all its subjects.
"""

from __future__ import annotations

from cachetools import LRUCache

from proxy.catalog import queue_names
from proxy.errors import NotFound
from proxy.stores.ledger import Job, Ledger
from proxy.stores.removal import FormerTenant
from proxy.targets import Target
from proxy.tenants.caller import Caller
from proxy.tenants.directory import Directory, Snapshot

#: How many jobs are remembered, with about a kilobyte each; the owner of a job never changes.
KEPT = 50_000


class Ownership:
    """Finds jobs for their owners, in memory or in the ledger."""

    def __init__(self, ledger: Ledger, directory: Directory) -> None:
        self._ledger = ledger
        #: The owner is part of the key: a job of another user takes as long to find as one that does not exist.
        self._cached: LRUCache[tuple[str, str, str], Job] = LRUCache(KEPT)
        self._gone: tuple[tuple[FormerTenant, ...], int] = ((), 0)
        directory.listen(self._follow)

    async def find(self, target: Target, caller: Caller) -> Job:
        """Find the job a target names. Its state may be older than the ledger's; its owner is not.

        Raises:
            NotFound: there is none, or it is not this caller's, or it runs on another endpoint.
        """
        job = await self.find_by_id(target.request_id, caller)
        if target.app not in queue_names(job.app):
            raise NotFound
        return job

    async def find_by_id(self, request_id: str, caller: Caller) -> Job:
        """Find the job of this caller that fal knows by an id, whatever endpoint it runs on.

        Raises:
            NotFound: there is none, or it is not this caller's.
        """
        job = self._cached.get((caller.tenant.id, caller.subject, request_id))
        if job is None or not _is_open_to(caller, job):
            job = await self._ledger.find(request_id)
            if job is None or not _is_open_to(caller, job):
                raise NotFound
            self.keep(job)
        return job

    async def find_of_tenant(self, request_id: str, tenant: str) -> Job:
        """Find the job that fal knows by an id, if a tenant or any of its users submitted it.

        Raises:
            NotFound: there is none, or it is another tenant's.
        """
        job = await self._ledger.find(request_id)
        if job is None or job.tenant != tenant:
            raise NotFound
        return job

    def _follow(self, snapshot: Snapshot) -> None:
        """Forget all owners once a tenant is deleted, or a subject forgotten: another one may get the name."""
        gone = (snapshot.former, snapshot.revoked.forgotten)
        if gone != self._gone:
            self._gone = gone
            self._cached.clear()

    def keep(self, job: Job) -> None:
        """Remember the owner of a job that fal has just accepted."""
        self._cached[job.tenant, job.subject, job.request_id or ""] = job


def _is_open_to(caller: Caller, job: Job) -> bool:
    if (job.tenant, job.subject) != (caller.tenant.id, caller.subject):
        return False
    return caller.narrowed_to is None or job.endpoint in caller.narrowed_to
