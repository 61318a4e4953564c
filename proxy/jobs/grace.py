"""The grace period: a session that expired while a job ran still reads that job, so that no paid answer is lost."""

from __future__ import annotations

from starlette.requests import HTTPConnection

from proxy.auth.authenticator import Authenticator
from proxy.errors import NotFound, SessionExpired
from proxy.jobs.ownership import Ownership
from proxy.targets import is_request_id
from proxy.tenants.caller import Caller


class GracePeriod:
    """Admits expired sessions to the jobs that were submitted before they expired."""

    def __init__(self, authenticator: Authenticator, owners: Ownership) -> None:
        self._authenticator = authenticator
        self._owners = owners

    async def admit(self, request: HTTPConnection, job: str, expired: SessionExpired) -> Caller:
        """Return the caller of a request to read a job; `expired` is why the request is refused otherwise.

        Raises:
            SessionExpired: the grace period is over, or the job is not the caller's, or was submitted after the expiry.
            Unauthenticated, OriginNotAllowed, StoreUnavailable: as `Authenticator.authenticate`.
        """
        if not is_request_id(job):
            raise expired
        caller = await self._authenticator.authenticate_expired(request)
        try:
            found = await self._owners.find_by_id(job, caller)
        except NotFound:
            raise expired from None
        if caller.session is None or found.submitted_at >= caller.session.expires_at:
            raise expired
        return caller
