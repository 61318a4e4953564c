"""The tree of failures that are expected; http/error_response.py turns any of them into a response.

    ProxyError
    ├── BadTarget                400  bad_target            the wanted fal URL cannot be understood, or may not be
    ├── BadRequest               400  bad_request           bad JSON, bad query, bad header
    ├── WebhookNotAllowed        400  webhook_not_allowed
    ├── Unauthenticated          401  unauthenticated
    │   ├── SessionExpired            session_expired
    │   ├── SessionRevoked            session_revoked
    │   ├── InvalidToken              invalid_token         an identity token; an expired one is a SessionExpired too
    │   ├── ProofRequired             proof_required        a guest without the proof that its tenant wants
    │   └── ProofInvalid              proof_invalid
    ├── QuotaExceeded            402  quota_exceeded        not 429: the fal clients repeat a 429 up to ten times
    ├── NotAllowed               403  not_allowed
    │   ├── EndpointNotAllowed        endpoint_not_allowed
    │   ├── OriginNotAllowed          origin_not_allowed
    │   └── TenantSuspended           tenant_suspended      the operator has switched the tenant off
    ├── NotFound                 404  not_found             an unknown job, and another user's job, alike
    ├── MethodNotAllowed         405  method_not_allowed
    ├── RequestTimeout           408  request_timeout       the head of a request did not end in time
    ├── BodyTooLarge             413  body_too_large
    ├── UnsupportedMediaType     415  unsupported_media_type
    ├── InvalidInput             422  invalid_input         with fal's list in `detail`
    ├── RateLimited              429  rate_limited
    │   └── TooManyJobs               too_many_jobs
    ├── Internal                 500  internal
    │   ├── UpstreamAmbiguous         upstream_ambiguous    fal may have accepted: the clients must not repeat it
    │   │   └── AcceptanceDeferred        it has; its id is written down when the database answers
    │   └── UpstreamRejectedKey       upstream_rejected_key
    ├── BadUpstream              502  bad_upstream          only where repeating is safe
    ├── UpstreamRefusedEndpoint  502  upstream_refused_endpoint  fal ran nothing
    ├── UpstreamTimeout          504  upstream_timeout      only where repeating is safe
    └── Unavailable              503  (abstract)            fal ran nothing
        ├── UpstreamUnavailable       upstream_unavailable  nothing was sent to fal
        ├── UpstreamAccountLocked     upstream_account_locked  also when its balance is used up
        ├── UpstreamBusy              upstream_busy         a limit of fal's own
        ├── StoreUnavailable          store_unavailable
        ├── IdentityUnavailable       identity_unavailable  the keys of a token's issuer cannot be had
        ├── ProofUnavailable          proof_unavailable     the verifier of a guest's proof gives no valid answer
        ├── Overloaded                overloaded            the bodies of all requests take too much memory
        ├── TooManyConnections        too_many_connections
        └── Draining                  draining

The codes are chosen for what the fal clients do with them: they submit again on 429, 502, 503 and 504, log a user out
on 401, and read a body only when it is `application/json`.
"""

from __future__ import annotations

import math
from typing import Any, TypedDict

from proxy.origins import OriginRefusal


class Detail(TypedDict):
    """One entry of fal's list of input problems."""

    loc: list[str | int]
    msg: str
    type: str


class ProxyError(Exception):
    """An expected failure: knows its status and code; its text is written for the caller and holds no secret.

    Attributes:
        retry_after: seconds after which another try makes sense.
        scope: which limit refused: `ip`, `session`, `subject`, `tenant` or `upstream`.
        headers: what else the answer must carry.
    """

    status = 500
    code = "internal"

    def __init__(
        self,
        message: str,
        *,
        retry_after: float | None = None,
        scope: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = None if retry_after is None else max(1, math.ceil(retry_after))
        self.scope = scope
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """Return the JSON object of the answer, still without the request id."""
        return {"detail": self.message, "message": self.message, "error_type": self.code}


class BadTarget(ProxyError):
    status, code = 400, "bad_target"


class BadRequest(ProxyError):
    status, code = 400, "bad_request"


class WebhookNotAllowed(ProxyError):
    status, code = 400, "webhook_not_allowed"


class Unauthenticated(ProxyError):
    status, code = 401, "unauthenticated"


class SessionExpired(Unauthenticated):
    code = "session_expired"


class SessionRevoked(Unauthenticated):
    code = "session_revoked"


class InvalidToken(Unauthenticated):
    code = "invalid_token"


class ProofRequired(Unauthenticated):
    code = "proof_required"


class ProofInvalid(Unauthenticated):
    code = "proof_invalid"


class QuotaExceeded(ProxyError):
    status, code = 402, "quota_exceeded"


class NotAllowed(ProxyError):
    status, code = 403, "not_allowed"


class EndpointNotAllowed(NotAllowed):
    code = "endpoint_not_allowed"


class OriginNotAllowed(NotAllowed):
    """A page may not call. `refusal` is for the log: the page does not learn who may."""

    code = "origin_not_allowed"

    def __init__(self, message: str, refusal: OriginRefusal | None = None) -> None:
        super().__init__(message)
        self.refusal = refusal


class TenantSuspended(NotAllowed):
    code = "tenant_suspended"


class NotFound(ProxyError):
    """Nothing there for this caller. Says the same for what never existed and for what belongs to another user."""

    status, code = 404, "not_found"

    def __init__(self, message: str = "There is no such job.") -> None:
        super().__init__(message)

    def body(self) -> dict[str, Any]:
        # The fal clients know an unknown job by this field.
        return {**super().body(), "status": "NOT_FOUND"}


class MethodNotAllowed(ProxyError):
    status, code = 405, "method_not_allowed"


class RequestTimeout(ProxyError):
    status, code = 408, "request_timeout"


class BodyTooLarge(ProxyError):
    status, code = 413, "body_too_large"


class UnsupportedMediaType(ProxyError):
    status, code = 415, "unsupported_media_type"


class InvalidInput(ProxyError):
    """The model's input is wrong; carries fal's list, so that a client shows it as it shows fal's own."""

    status, code = 422, "invalid_input"

    def __init__(self, details: list[Detail]) -> None:
        first = details[0]
        super().__init__(f"{'.'.join(map(str, first['loc'][1:])) or 'body'}: {first['msg']}")
        self.details = details

    def body(self) -> dict[str, Any]:
        # `body` and the numeric `status` are what the Dart client reads of a 422.
        return {**super().body(), "detail": self.details, "status": self.status, "body": self.details}


class RateLimited(ProxyError):
    status, code = 429, "rate_limited"


class TooManyJobs(RateLimited):
    code = "too_many_jobs"


class Internal(ProxyError):
    status, code = 500, "internal"


class UpstreamAmbiguous(Internal):
    code = "upstream_ambiguous"


class AcceptanceDeferred(UpstreamAmbiguous):
    """fal has the job, under an id that is known and cannot be written down yet."""


class UpstreamRejectedKey(Internal):
    code = "upstream_rejected_key"


class BadUpstream(ProxyError):
    status, code = 502, "bad_upstream"


class UpstreamRefusedEndpoint(ProxyError):
    status, code = 502, "upstream_refused_endpoint"


class UpstreamTimeout(ProxyError):
    status, code = 504, "upstream_timeout"


class Unavailable(ProxyError):
    """fal ran nothing, and a later try may succeed."""

    status = 503

    def __init__(self, message: str, *, retry_after: float = 1, scope: str | None = None) -> None:
        super().__init__(message, retry_after=retry_after, scope=scope)


class UpstreamUnavailable(Unavailable):
    code = "upstream_unavailable"


class UpstreamAccountLocked(Unavailable):
    code = "upstream_account_locked"


class UpstreamBusy(Unavailable):
    code = "upstream_busy"


class StoreUnavailable(Unavailable):
    """Its `message` may be an operator's: `for_callers` says the same without how the proxy is set up."""

    code = "store_unavailable"

    def __init__(self, message: str, *, for_callers: str | None = None) -> None:
        super().__init__(message)
        self._for_callers = for_callers or message

    def body(self) -> dict[str, Any]:
        return super().body() | {"detail": self._for_callers, "message": self._for_callers}


class IdentityUnavailable(Unavailable):
    code = "identity_unavailable"


class ProofUnavailable(Unavailable):
    code = "proof_unavailable"


class Overloaded(Unavailable):
    code = "overloaded"


class TooManyConnections(Unavailable):
    code = "too_many_connections"


class Draining(Unavailable):
    code = "draining"


#: The failures of a call at fal that ran nothing there, and so cost nothing.
NOTHING_RAN = (UpstreamUnavailable, UpstreamAccountLocked, UpstreamBusy, UpstreamRejectedKey, UpstreamRefusedEndpoint)


def without_frames(error: Exception) -> Exception:
    """Give an error that can be kept: its frames refer to what keeps it, which only the garbage collector frees."""
    error.__context__ = error.__cause__ = None
    return error.with_traceback(None)
