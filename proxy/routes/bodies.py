"""Reading request bodies: bounded in size by the middleware, in time here."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from proxy.errors import BadRequest
from proxy.policy.inputs import parse_json
from proxy.upstream.relay import CallerGone

#: The longest silence in a body, and the longest a body that keeps trickling may take.
SILENCE_SECONDS = 30.0
TOTAL_SECONDS = 300.0
Form = TypeVar("Form", bound=BaseModel)


async def read_body(request: Request) -> bytes:
    """The whole body.

    Raises:
        BodyTooLarge: more than the bound.
        BadRequest: it stopped coming.
        CallerGone: the caller hung up in the middle of it.
    """
    chunks: list[bytes] = []
    now = asyncio.get_running_loop().time
    latest = now() + TOTAL_SECONDS
    try:
        async with asyncio.timeout(SILENCE_SECONDS) as patience:
            async for chunk in request.stream():
                if chunk:
                    chunks.append(chunk)
                    patience.reschedule(min(now() + SILENCE_SECONDS, latest))
        return b"".join(chunks)
    except TimeoutError:
        raise BadRequest("The body stopped coming; send it again.") from None
    except ClientDisconnect:
        raise CallerGone from None


async def read_json(request: Request) -> Any:
    """The parsed JSON of the body.

    Raises:
        UnsupportedMediaType, BadRequest: it is not JSON.
    """
    return parse_json(await read_body(request), request.headers.get("content-type"))


async def read_form(request: Request, form: type[Form]) -> Form:
    """The body as one of our own forms; an empty body is an empty form.

    Raises:
        BadRequest: a field is wrong, missing or unknown; every one is named.
    """
    body = await read_body(request)
    document = parse_json(body, request.headers.get("content-type")) if body.strip() else {}
    try:
        return form.model_validate(document)
    except ValidationError as problem:
        raise BadRequest("; ".join(_sentence(error) for error in problem.errors())) from None


def _sentence(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"]) or "the body"
    return f"{where}: {error['msg'].removeprefix('Value error, ')}"
