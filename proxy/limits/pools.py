"""Which pools a call takes a slot of."""

from __future__ import annotations

from proxy.stores.ledger import Job, OpenJob
from proxy.tenants.caller import is_guest_name


def keys_of(job: Job | OpenJob) -> tuple[str, ...]:
    """The pools of a job's subject, of its tenant and, if it is a guest's, of the tenant's guests."""
    return keys_of_subject(job.tenant, job.subject)


def keys_of_subject(tenant: str, subject: str) -> tuple[str, ...]:
    own = (f"subject:{tenant}:{subject}", f"tenant:{tenant}")
    return (*own, f"guests:{tenant}") if is_guest_name(subject) else own
