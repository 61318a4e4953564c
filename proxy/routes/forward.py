"""The way of a call, the same for every surface: caller, target, gate, fal, answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive

from proxy.auth.callers import Caller
from proxy.policy.ratelimit import network_of
from proxy.routes import uploads
from proxy.routes.bodies import read_json
from proxy.routes.call import Call, Rewrite
from proxy.routes.once import HEADER, key_of
from proxy.routes.services import Services
from proxy.stores.base import Job
from proxy.targets import Kind, Target
from proxy.upstream import headers
from proxy.upstream.relay import read_whole


async def forward(
    services: Services, request: Request, parse: Callable[[], Target], rewrite: Rewrite | None = None
) -> Response:
    """Answer one request of a surface that names a fal call.

    Raises:
        ProxyError: any of them; each route lets them pass.
        CallerGone: the caller hung up, and nobody waits for the answer.
    """
    caller = await services.authenticator.authenticate(request)
    target = parse()
    note(request, caller, target)
    sent = headers.to_fal(request.headers, streams=target.kind in (Kind.STREAM, Kind.STATUS_STREAM))
    way = _Way(services, request, caller, target, sent, rewrite)
    if target.kind in (Kind.SUBMIT, Kind.RUN) and (key := key_of(request.headers.getlist(HEADER))):
        return await way.go_once(key)
    return await way.go()


@dataclass(frozen=True)
class _Way:
    """The way of one call from the gate to its answer."""

    services: Services
    request: Request
    caller: Caller
    target: Target
    sent: dict[str, str]
    rewrite: Rewrite | None

    async def go(self) -> Response:
        return await self._admitted(lambda: read_json(self.request), self.request.receive)

    async def go_once(self, key: str) -> Response:
        self.services.gate.check_endpoint(self.caller, self.target)
        body = await read_json(self.request)
        limits: dict[str, str] = {}

        async def given() -> Any:
            return body

        async def work(job_id: str) -> Response:
            # Somebody may come back for this outcome: a caller who hangs up does not end it.
            answer = await self._admitted(given, _never_gone, job_id)
            limits.update({name: value for name, value in answer.headers.items() if name.startswith("ratelimit")})
            return answer

        answer = await self.services.once.do(key, self.caller, self.target, body, work, self._again, self._found)
        answer.headers.update(limits)
        return self._rewritten(answer)

    async def _again(self) -> None:
        """A repeated call costs what a poll costs."""
        await self.services.limiter.hit(self.caller, network_of(self.request), polls=True)

    def _rewritten(self, answer: Response) -> Response:
        """The first answer may have been given in the form of another surface."""
        if self.rewrite is None or self.target.kind is not Kind.SUBMIT or answer.status_code >= 300:
            return answer
        headers = {name: value for name, value in answer.headers.items() if name != "content-length"}
        return Response(self.rewrite(self.target, bytes(answer.body)), answer.status_code, headers)

    async def _admitted(
        self, read_input: Callable[[], Awaitable[Any]], receive: Receive, job_id: str | None = None
    ) -> Response:
        address = network_of(self.request)
        admission = await self.services.gate.admit(self.caller, self.target, address, read_input, job_id)
        if self.target.kind.is_upload:
            answer = await uploads.begin(self.services, self.request, self.caller, self.target.kind)
        else:
            answer = await Call(self.services, admission, receive, self.sent, self.rewrite).answer()
        answer.headers.update(admission.allowance.headers())
        return answer

    async def _found(self, job: Job) -> Response:
        """The answer to a repeated submit, from the job that fal has."""
        target = Target(Kind.STATUS, app=job.app, request_id=job.request_id or "")
        response = await self.services.upstream.call(target, self.sent)
        body = await read_whole(response, repeatable=True)
        if response.is_success and self.rewrite is not None:
            body = self.rewrite(target, body)
        status = 200 if response.is_success else response.status_code
        return Response(body, status, {**headers.to_caller(response.headers), "idempotency-replayed": "true"})


async def _never_gone() -> Message:
    await asyncio.get_running_loop().create_future()
    raise AssertionError("nobody sets that future")


def note(request: Request, caller: Caller, target: Target | None = None) -> None:
    """Facts for the log line of this request."""
    facts: dict[str, Any] = {"tenant": caller.tenant.id, "subject": caller.subject}
    if target is not None:
        facts |= {"kind": target.kind.value, "app": target.app}
    if target is not None and target.request_id:
        facts["job"] = target.request_id
    request.scope["state"].setdefault("facts", {}).update(facts)
