"""Faults: which requests are to go wrong, and the ASGI layer that lets them.

A fault comes from `POST /_sandbox/faults`, `{"fault": name, "on": {"host", "method", "path_contains", "operation"},
"times": n or null, …parameters}`, for coming requests; or from a directive in a prompt, `[[fault name=value
on=operation times=n …]]`. A directive acts on the request that carries it, unless `on` names an operation; on a
submitted job's own operations (status, status-stream, result, cancel) it acts when they come. The kinds are those of
`fault_kinds`.

Operations: run, stream, submit, status, status-stream, result, cancel, rest, cdn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.sandbox.directives import parse_directives
from proxy.sandbox.fault_kinds import FAULT_KINDS
from proxy.sandbox.replies import reply
from proxy.sandbox.request_log import Exchange

_JOB_OPERATIONS = {
    "": "result", "response": "result", "status": "status", "status/stream": "status-stream", "cancel": "cancel",
}  # fmt: skip
OPERATIONS = frozenset({"run", "stream", "submit", "rest", "cdn", *_JOB_OPERATIONS.values()})
_CONDITIONS = ("host", "method", "path_contains", "operation")


@dataclass
class Fault:
    """One kind of damage, when it strikes and how often still (None: always)."""

    kind: str
    params: Mapping[str, Any]
    on: Mapping[str, str] = field(default_factory=dict)
    times: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in FAULT_KINDS:
            raise ValueError(f"no such fault: {self.kind}; there is {', '.join(FAULT_KINDS)}")
        if unknown := set(self.on) - set(_CONDITIONS):
            raise ValueError(
                f"a fault has no condition {', '.join(sorted(unknown))}; there is {', '.join(_CONDITIONS)}"
            )
        if self.on.get("operation", "run") not in OPERATIONS:
            raise ValueError(f"no such operation: {self.on['operation']}; there is {', '.join(sorted(OPERATIONS))}")

    def strikes(self, exchange: Exchange, operation: str) -> bool:
        """Return whether this request is to suffer; count it if so."""
        here = {"host": exchange.host, "method": exchange.method, "operation": operation}
        if any(self.on.get(name, value) != value for name, value in here.items()):
            return False
        if self.on.get("path_contains", "") not in exchange.path or self.times == 0:
            return False
        self.times = None if self.times is None else self.times - 1
        return True


def from_json(document: Mapping[str, Any]) -> Fault:
    """Make a fault from what the control route takes.

    Raises:
        ValueError: no such fault or condition.
    """
    rest = {name: value for name, value in document.items() if name not in ("fault", "on", "times")}
    kind, times = str(document.get("fault")), document.get("times")
    return Fault(kind, rest, document.get("on") or {}, None if times is None else int(times))


def from_directive(pairs: Iterable[tuple[str, str]]) -> Fault:
    """Make a fault from what a prompt names.

    Raises:
        ValueError: no such fault or operation.
    """
    (kind, _), *_ = pairs = list(pairs)
    params = dict(pairs)
    on, times = params.pop("on", None), params.pop("times", None)
    return Fault(kind, params, {"operation": on} if on else {}, None if times is None else int(times))


def operation_of(host: str, path: str) -> str:
    """Return what a request is for, from its path below the host's prefix."""
    path = path.removesuffix("/")
    if host == "run":
        return "stream" if path.endswith("/stream") else "run"
    if host != "queue":
        return host
    _, in_job, rest = path.partition("/requests/")
    return _JOB_OPERATIONS.get(rest.partition("/")[2], "submit") if in_job else "submit"


class Faults:
    """The faults that are set for coming requests."""

    def __init__(self) -> None:
        self._set: list[Fault] = []

    def add(self, fault: Fault) -> None:
        self._set.append(fault)

    def clear(self) -> None:
        self._set.clear()

    def find_striking(self, exchange: Exchange, operation: str) -> list[Fault]:
        return [fault for fault in self._set if fault.strikes(exchange, operation)]


class Faulty:
    """ASGI layer: finds the faults of each request and wraps the application in their damage.

    Args:
        faults_of_job: the faults that a job's own prompt asked for.
    """

    def __init__(self, app: ASGIApp, faults: Faults, faults_of_job: Callable[[str], Iterable[Fault]]) -> None:
        self.app = app
        self.faults = faults
        self.faults_of_job = faults_of_job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange | None = scope.get("sandbox")
        if exchange is None:
            return await self.app(scope, receive, send)
        try:
            app = self._apply(exchange)
        except (ValueError, TypeError) as error:
            return await reply({"detail": f"sandbox: {error}"}, 400)(scope, receive, send)
        return await app(scope, receive, send)

    def _apply(self, exchange: Exchange) -> ASGIApp:
        operation = operation_of(exchange.host, exchange.path)
        exchange.directives = parse_directives(exchange.json)
        app = self.app
        for fault in [
            *self.faults.find_striking(exchange, operation),
            *(fault for fault in self._of_job(exchange) if fault.strikes(exchange, operation)),
            *self._of_prompt(exchange, operation),
        ]:
            app = FAULT_KINDS[fault.kind](app, exchange, fault.params)
        return app

    def _of_job(self, exchange: Exchange) -> Iterable[Fault]:
        _, in_job, rest = exchange.path.partition("/requests/")
        return self.faults_of_job(rest.partition("/")[0]) if in_job else ()

    def _of_prompt(self, exchange: Exchange, operation: str) -> list[Fault]:
        """List the faults in this request's own prompt; those for later operations are kept for the job."""
        faults = [from_directive(pairs) for pairs in exchange.directives.faults]
        exchange.later = tuple(fault for fault in faults if fault.on)
        return [fault for fault in faults if not fault.on or fault.strikes(exchange, operation)]
