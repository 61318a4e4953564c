"""The scopes in which a call takes a lease."""

from __future__ import annotations

from functools import lru_cache

from proxy.stores.ledger import Job, OpenJob
from proxy.tenants.caller import is_guest_name


def scope_keys(job: Job | OpenJob) -> tuple[str, ...]:
    """Return the scopes of a job's subject, of its tenant and, if it is a guest's, of the tenant's guests."""
    return subject_scope_keys(job.tenant, job.subject)


@lru_cache(maxsize=4096)
def subject_scope_keys(tenant: str, subject: str) -> tuple[str, ...]:
    own = (f"subject:{tenant}:{subject}", f"tenant:{tenant}")
    return (*own, f"guests:{tenant}") if is_guest_name(subject) else own
