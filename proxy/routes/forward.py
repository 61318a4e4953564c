"""The way of a call, the same for every surface: caller, target, gate, fal, answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from proxy.auth.callers import Caller
from proxy.errors import UpstreamAmbiguous
from proxy.http.disconnect import Disconnect, disconnect_of
from proxy.jobs.updates import Rewrite
from proxy.policy.ratelimit import Allowance, network_of
from proxy.routes import uploads
from proxy.routes.bodies import read_json
from proxy.routes.call import Call, rewritten
from proxy.routes.events import counted
from proxy.routes.once import HEADER, key_of
from proxy.routes.polls import Told, from_memory
from proxy.routes.services import Services
from proxy.stores.base import Job
from proxy.targets import Kind, Target
from proxy.upstream import headers, wishes


async def forward(
    services: Services,
    request: Request,
    parse: Callable[[], Target],
    rewrite: Rewrite | None = None,
) -> Response:
    """Answer one request of a surface that names a fal call.

    Raises:
        ProxyError: any of them; each route lets them pass.
        CallerGone: the caller hung up, and nobody waits for the answer.
    """
    caller = await services.authenticator.authenticate(request)
    target = parse()
    note(request, caller, target)
    way = Way(services, request, caller, target, rewrite)
    if target.kind in (Kind.STREAM, Kind.STATUS_STREAM):
        return await counted(services, caller, way.go)
    answer = await way.go()
    if isinstance(answer, Told):
        services.known_polls.remember(request.scope, caller, answer)
    return answer


@dataclass(slots=True)
class Way:
    """The way of one call from the gate to its answer.

    Attributes:
        read: gives the input of a run, stream or submit; the body of the request if not given.
        allowance: of a call that was counted before its body was read.
    """

    services: Services
    request: Request
    caller: Caller
    target: Target
    rewrite: Rewrite | None = None
    read: Callable[[], Awaitable[Any]] | None = None
    allowance: Allowance | None = None
    _wishes: dict[str, str] = field(default_factory=dict)

    async def go(self) -> Response:
        """The answer to the call; one that carries an Idempotency-Key is made once.

        Raises:
            ProxyError, CallerGone: as `forward`.
        """
        dropped = ""
        if self.target.kind.names_endpoint:
            plan = self.caller.plan
            self._wishes, dropped = wishes.of_call(self.request.headers, plan.uploads.expire_seconds, plan.pass_headers)
        try:
            answer = await self._gone()
        except asyncio.CancelledError:
            # Only the end of the process cancels.
            if self.target.kind.repeatable:
                raise
            raise UpstreamAmbiguous("This server stopped before fal's answer came. Look before repeating it.") from None
        if dropped:
            answer.headers[wishes.DROPPED] = dropped
        return answer

    async def _gone(self) -> Response:
        if self.target.kind in (Kind.SUBMIT, Kind.RUN) and (key := key_of(self.request.headers.getlist(HEADER))):
            return await self._go_once(key)
        disconnect = disconnect_of(self.request.scope, self.request.receive)
        return await self._admitted(self._read, disconnect, None, self.rewrite, self.allowance)

    async def _read(self) -> Any:
        return await self.read() if self.read else await read_json(self.request)

    async def _go_once(self, key: str) -> Response:
        self.services.gate.check_endpoint(self.caller, self.target)
        if self.read is None:
            await self.services.limiter.check_repeatable(self.caller, network_of(self.request))
        body = await self._read()
        limits: dict[str, str] = {}

        async def given() -> Any:
            return body

        async def work(job_id: str) -> Response:
            # Somebody may come back for this outcome: a caller who hangs up does not end it.
            answer = await self._admitted(given, None, job_id, None)
            limits.update({name: value for name, value in answer.headers.items() if name.startswith("ratelimit")})
            return answer

        answer = await self.services.once.do(key, self.caller, self.target, body, work, self._again, self._found)
        answer.headers.update(limits)
        # What is kept is fal's own form: the next one who asks may use another surface.
        return rewritten(answer, self.target.endpoint, self.rewrite) if self.target.kind is Kind.SUBMIT else answer

    async def _again(self) -> None:
        """A repeated call costs what a poll costs."""
        await self.services.limiter.hit(self.caller, network_of(self.request), polls=True)

    async def _admitted(
        self,
        read_input: Callable[[], Awaitable[Any]],
        disconnect: Disconnect | None,
        job_id: str | None,
        rewrite: Rewrite | None,
        allowance: Allowance | None = None,
    ) -> Response:
        streams = self.target.kind in (Kind.STREAM, Kind.STATUS_STREAM)
        sent = headers.to_fal(self.request.headers, streams=streams)
        sent.update(self._wishes)
        address = network_of(self.request)
        admission = await self.services.gate.admit(self.caller, self.target, address, read_input, job_id, allowance)
        if (known := await from_memory(self.services, admission, rewrite)) is not None:
            # One line for each would bury those of the calls that do something.
            self.request.scope["state"]["is_routine"] = True
            answer = known
        elif self.target.kind.is_upload:
            answer = await uploads.begin(self.services, self.request, self.caller, self.target.kind)
        else:
            answer = await Call(self.services, admission, disconnect, sent, rewrite).answer()
        answer.raw_headers += admission.allowance.raw_headers()
        return answer

    async def _found(self, job: Job) -> Response:
        """The answer to a repeated submit, from the job that fal has."""
        answer = await self.services.hub.ask(job, logs=False)
        status = 200 if answer.status < 300 else answer.status
        return Response(answer.body, status, {**answer.headers, "idempotency-replayed": "true"})


def note(request: Request, caller: Caller, target: Target | None = None) -> None:
    """Facts for the log line of this request."""
    facts: dict[str, Any] = {"tenant": caller.tenant.id, "subject": caller.subject}
    if target is not None:
        facts |= {"kind": target.kind.value, "app": target.app}
    if target is not None and target.request_id:
        facts["job"] = target.request_id
    request.scope["state"].setdefault("facts", {}).update(facts)
