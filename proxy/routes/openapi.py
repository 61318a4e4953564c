"""`/openapi.json`: what every route takes and answers, for programs that make clients.

It is written by hand, a file a part, in openapi/. Forms come from their models and refusals from the tree of errors, so
that nothing is said twice.
"""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import orjson
import yaml
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from slowapi import Limiter
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from proxy import __version__
from proxy.errors import ProxyError, RateLimited, RequestTimeout
from proxy.http.scope import set_cache_control
from proxy.limits.rates import DESCRIPTION_LIMIT
from proxy.routes.admin import MintFor, NewKey, Revoke
from proxy.routes.admin_tokens import NewToken
from proxy.routes.grants import NewGrant
from proxy.routes.guests import Guest
from proxy.routes.jobs import NewJob
from proxy.routes.overrides import NewOverride
from proxy.routes.sessions import Exchange, Mint, Renew, SignOut
from proxy.tenants.plans import PlanFile
from proxy.uploads.parts import Complete

PATH = "/openapi.json"
FORMS: tuple[type[BaseModel], ...] = (
    *(NewJob, Mint, SignOut, Guest, Exchange, Renew, Complete),
    *(PlanFile, NewKey, NewGrant, NewOverride, MintFor, Revoke, NewToken),
)
_FOLDER = Path(__file__).with_suffix("")
_PARTS = ("fal", "jobs", "uploads", "sessions", "admin", "operations")
_CACHING = b"public, max-age=3600"
_TYPES: dict[type, str] = {str: "string", int: "integer", float: "number", bool: "boolean"}
#: Written in C where PyYAML has it: the text is long.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def routes(flood_guard: Limiter, public_url: str) -> list[Route]:
    @flood_guard.limit(DESCRIPTION_LIMIT)
    async def openapi(request: Request) -> Response:
        body = describe_routes(public_url)
        set_cache_control(request.scope, _CACHING)
        return Response(body, media_type="application/json")

    return [Route(PATH, openapi, methods=["GET"])]


@cache
def describe_routes(public_url: str) -> bytes:
    """Give the whole document as JSON, for the proxy at an address.

    It is made when it is first asked for: most processes never are.
    """
    whole = _read("api")
    whole["info"]["version"] = __version__
    whole["servers"] = [{"url": public_url}]
    whole["paths"] = {}
    parts = whole["components"]
    parts["responses"] = _refusals(whole.pop("refusals"))
    parts["schemas"] |= _forms()
    for name in _PARTS:
        part = _read(name)
        whole["paths"] |= part["paths"]
        parts["schemas"] |= part.get("schemas", {})
    for path in whole["paths"].values():
        for operation in path.values():
            if isinstance(operation, dict):
                _name_refusals(operation)
    _name_types(whole)
    return orjson.dumps(whole)


def _read(name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.load((_FOLDER / f"{name}.yaml").read_text(), _Loader)
    return document


def _forms() -> dict[str, Any]:
    _, document = models_json_schema(
        [(form, "validation") for form in FORMS], ref_template="#/components/schemas/{model}"
    )
    schemas: dict[str, Any] = document["$defs"]
    return schemas


def _name_refusals(operation: dict[str, Any]) -> None:
    """Put a response for each status that an operation lists; its own ones, which others share, stay as they are."""
    # Any request can be answered with the first two: a head that does not end, an address that is refused too often.
    listed = {RequestTimeout.status, RateLimited.status, *operation.pop("refusals", ())}
    named = {str(status): {"$ref": f"#/components/responses/Refused{status}"} for status in sorted(listed)}
    operation["responses"] = {**named, **operation["responses"]}


def _name_types(node: Any) -> None:
    """Say the type of each enum and constant: generators make none of a schema without one, or one of anything."""
    if isinstance(node, dict):
        values = node["enum"] if isinstance(node.get("enum"), list) else [node["const"]] if "const" in node else []
        if "type" not in node and len(kinds := set(map(type, values))) == 1:
            node["type"] = _TYPES[kinds.pop()]
    for inner in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _name_types(inner)


def _refusals(words: dict[str, str]) -> dict[str, Any]:
    """Make a response for each status, with the codes that have it."""
    codes: defaultdict[int, dict[str, str]] = defaultdict(dict)
    for kind in _kinds(ProxyError):
        if "code" in vars(kind):
            codes[kind.status][kind.code] = words[kind.code]
    return {f"Refused{status}": _refusal(codes[status]) for status in sorted(codes)}


def _kinds(of: type[ProxyError]) -> list[type[ProxyError]]:
    return [of, *(kind for child in of.__subclasses__() for kind in _kinds(child))]


def _refusal(words: dict[str, str]) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Refusal", "properties": {"error_type": {"enum": list(words)}}}
    names = ("x-request-id", "x-fal-error-type", "retry-after")
    return {
        "description": "\n".join(f"- `{code}`: {means}" for code, means in words.items()),
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in names},
        "content": {"application/json": {"schema": schema}},
    }
