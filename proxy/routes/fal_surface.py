"""fal's own protocol, however a client says which fal call it wants."""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from proxy.calls.call import Form, new_call
from proxy.routes import uploads
from proxy.routes.rendering import bind_call, render
from proxy.routes.services import Services
from proxy.targets import Target


class FalSurface:
    """ASGI: answers the requests of fal's clients.

    It stands in a route as an application: so it is spared the two layers in which Starlette looks for exception
    handlers. `proxy.http.middleware.Errors` answers for what is raised here.

    Args:
        parse: reads from a request which fal call is wanted. It may raise a ProxyError.
        form: how fal's documents are written.
    """

    def __init__(self, services: Services, parse: Callable[[Request], Target], form: Form) -> None:
        self._services = services
        self._parse = parse
        self._form = form

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request, services = Request(scope, receive, send), self._services
        caller = await services.authenticator.authenticate(request)
        target = self._parse(request)
        bind_call(request, caller, target)
        if target.kind.is_upload:
            await services.admission.admit_upload(caller, scope)
            response = await uploads.begin(services, request, caller, target.kind)
        else:
            call = new_call(caller, target, request, self._form)
            response = render(call, await services.handlers[target.kind](call), services.stream_guard)
        await response(scope, receive, send)
