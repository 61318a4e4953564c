"""A call to fal as its caller asks for it, and its outcome."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any, NamedTuple

from starlette.requests import Request

from proxy.errors import BadRequest
from proxy.http.bodies import read_json
from proxy.http.disconnect import Disconnect, disconnect_of
from proxy.http.scope import MAY_HAVE_RUN, show_header, values_of
from proxy.jobs.updates import Rewrite
from proxy.stores.ledger import Job
from proxy.targets import Kind, Target
from proxy.tenants.caller import Caller
from proxy.upstream import headers, wishes

KEY_HEADER = "idempotency-key"
_KEY_NAME = KEY_HEADER.encode()
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
#: In place of an input that is still in the body; JSON's `null` is an input that was read.
UNREAD = object()


class Form(NamedTuple):
    """The form in which a surface writes what fal says of a job.

    Attributes:
        rewrite: makes fal's document the surface's own; None for fal's form.
        pending_status: the status code for a job that is not done.
    """

    rewrite: Rewrite | None = None
    pending_status: int = 202


class Call(NamedTuple):
    """What a caller asks for.

    Attributes:
        request: the request that asks; its body has the input, unless `input` is given.
        headers: those of the request to fal, but for the key.
        input: the parsed input, where it was read before.
        is_counted: whether the call was counted against its rate limits before.
        passed_guard: whether the guard let it in before, so that it is not asked again.
        key: its Idempotency-Key.
        job_id: the id that its job is to have; a new one if not given.
        ends_with_caller: whether a caller who hangs up ends it.
    """

    caller: Caller
    target: Target
    request: Request
    form: Form
    headers: dict[str, str]
    input: Any = UNREAD
    is_counted: bool = False
    passed_guard: bool = False
    key: str | None = None
    job_id: str | None = None
    ends_with_caller: bool = True

    @property
    def disconnect(self) -> Disconnect | None:
        """The disconnect that ends the call."""
        return disconnect_of(self.request.scope, self.request.receive) if self.ends_with_caller else None

    def mark_sent(self) -> None:
        """Note that from here on fal may run the call, so that repeating it may run it again."""
        self.request.scope["state"][MAY_HAVE_RUN] = True

    async def read_input(self) -> Any:
        """Read the input from the body, unless it was read before.

        Raises:
            UnsupportedMediaType, BadRequest, BodyTooLarge: it is not JSON that can be taken.
        """
        return await read_json(self.request) if self.input is UNREAD else self.input


def new_call(caller: Caller, target: Target, request: Request, form: Form) -> Call:
    """Read from the head of a request what it asks for. The response names the headers that the plan does not let pass.

    Raises:
        BadRequest: a header has a value that fal does not know, or the Idempotency-Key is none.
    """
    given, kind, key = request.scope["headers"], target.kind, None
    sent = headers.to_fal(given, streams=kind is Kind.STREAM)
    if kind.names_endpoint:
        wanted, dropped = wishes.of_call(given, caller.plan.uploads.expire_seconds, caller.plan.pass_headers)
        sent.update(wanted)
        if dropped:
            show_header(request.scope, wishes.DROPPED, dropped)
        key = None if kind is Kind.STREAM else parse_key(values_of(request.scope, _KEY_NAME))
    return Call(caller, target, request, form, sent, key=key)


def parse_key(values: list[str]) -> str | None:
    """Read the Idempotency-Key of a request.

    Raises:
        BadRequest: it is sent twice, or is not 1 to 255 printable ASCII characters.
    """
    if not values:
        return None
    if len(values) != 1 or not _KEY.fullmatch(values[0]):
        raise BadRequest("The Idempotency-Key must be 1 to 255 printable characters without spaces, sent once.")
    return values[0]


class Outcome(NamedTuple):
    """The outcome of a call, in no surface's form yet.

    Attributes:
        headers: those of fal's answer that may cross.
        body: fal's answer, or the encoded state of a job.
        document: the parsed body, where it is about a job and a surface may write it in its own form.
        events: the encoded events of a stream, instead of a body.
        release: called at the end of the stream, before `on_close`.
        on_close: called at the end of the stream.
        job: the caller's job that was made or asked about.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = b""
    document: dict[str, Any] | None = None
    events: AsyncGenerator[bytes, None] | None = None
    release: Callable[[], Awaitable[None]] | None = None
    on_close: tuple[Callable[[], None], ...] = ()
    job: Job | None = None
