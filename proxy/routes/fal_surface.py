"""fal's own protocol, however a client says which fal call it wants."""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from proxy.auth.authenticator import Authenticator
from proxy.calls.call import Form, new_call
from proxy.calls.handler import Handlers
from proxy.errors import ProxyError, SessionExpired
from proxy.jobs.grace import GracePeriod
from proxy.limits.stream_guard import StreamGuard
from proxy.routes.rendering import bind_call, render
from proxy.routes.uploads.calls import UploadCalls
from proxy.targets import Target


class FalSurface:
    """ASGI: answers the requests of fal's clients.

    It stands in a route as an application: so it is spared the two layers in which Starlette looks for exception
    handlers. `proxy.http.middleware.Errors` answers for what is raised here. Its route names no methods: those that
    `proxy.targets` does not know are refused with the ones that it knows.

    Args:
        parse: reads from a request which fal call is wanted. It may raise a ProxyError.
        form: how fal's documents are written.
    """

    def __init__(
        self,
        authenticator: Authenticator,
        grace: GracePeriod,
        handlers: Handlers,
        uploads: UploadCalls,
        stream_guard: StreamGuard,
        parse: Callable[[Request], Target],
        form: Form,
    ) -> None:
        self._authenticator = authenticator
        self._grace = grace
        self._handlers = handlers
        self._uploads = uploads
        self._stream_guard = stream_guard
        self._parse = parse
        self._form = form

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        try:
            caller = await self._authenticator.authenticate(request)
        except SessionExpired as expired:
            caller = await self._grace.admit(request, self._job_to_read(request), expired)
        target = self._parse(request)
        bind_call(request, caller, target)
        if target.kind.is_upload:
            response = await self._uploads.begin(request, caller, target.kind)
        else:
            call = new_call(caller, target, request, self._form)
            response = render(call, await self._handlers[target.kind](call), self._stream_guard)
        await response(scope, receive, send)

    def _job_to_read(self, request: Request) -> str:
        """Return the id of the job that a request reads; '' if it does something else."""
        try:
            target = self._parse(request)
        except ProxyError:
            return ""
        return target.request_id if target.kind.reads_job else ""
