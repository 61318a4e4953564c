"""For the operator: named tokens of the admin API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from proxy.auth.admin_tokens import AdminTokens, Role
from proxy.clock import to_iso
from proxy.errors import NotFound
from proxy.routes.admin_door import AdminDoor
from proxy.routes.operators import MOST_LISTED
from proxy.routes.paging import cut_page, parse_limit, parse_moment, parse_name_cursor
from proxy.routes.queries import known_query
from proxy.stores.admin_tokens import NamedToken
from proxy.stores.audit import Author
from proxy.tenants.strict import Name, is_name


class NewToken(BaseModel):
    """A token to create; without `expires_at`, it lasts 90 days."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: Name
    role: Literal["viewer", "operator", "admin"]
    expires_at: Annotated[str, Field(max_length=40)] | None = None


class AdminTokenRoutes:
    """List, create and revoke named tokens."""

    def __init__(self, door: AdminDoor, tokens: AdminTokens) -> None:
        self._door = door
        self._tokens = tokens

    def routes(self) -> list[Route]:
        route = self._door.route
        return [
            route("GET", "/tokens", self.list_tokens, Role.VIEWER),
            route("POST", "/tokens", self.create_token, Role.ADMIN),
            route("DELETE", "/tokens/{token}", self.revoke_token, Role.ADMIN),
        ]

    async def list_tokens(self, request: Request) -> Response:
        return JSONResponse(await read_tokens(self._tokens, known_query(request, "limit", "cursor")))

    async def create_token(self, request: Request) -> Response:
        known_query(request)
        form = await self._door.read_form(request, NewToken)
        return JSONResponse(await make_token(self._tokens, form, by=self._door.author_of(request)), 201)

    async def revoke_token(self, request: Request) -> Response:
        known_query(request)
        name = request.path_params["token"]
        if not (is_name(name) and await self._tokens.revoke(name, by=self._door.author_of(request))):
            raise NotFound("There is no such token.")
        return Response(status_code=204)


async def read_tokens(tokens: AdminTokens, query: Mapping[str, str]) -> dict[str, Any]:
    """Read a page of named tokens as JSON, by name and without their secrets, and the cursor to the next one.

    Raises:
        BadRequest: a value of the query cannot be understood.
        StoreUnavailable: the database does not answer.
    """
    limit, after = parse_limit(query.get("limit"), MOST_LISTED, MOST_LISTED), parse_name_cursor(query.get("cursor"))
    # PostgreSQL may sort in the order of a language.
    known = sorted(await tokens.list_named(), key=lambda token: token.name)
    found = [token for token in known if token.name > after]
    page, cursor = cut_page(found, limit, lambda token: token.name)
    return {"tokens": [describe_token(token) for token in page], "next_cursor": cursor}


async def make_token(tokens: AdminTokens, form: NewToken, *, by: Author) -> dict[str, Any]:
    """Create a token: as JSON, with the text of it, which is in no later answer.

    Raises:
        BadRequest: there is one of that name, there are too many, or it would end too early or too late.
    """
    expires_at = None if form.expires_at is None else parse_moment("expires_at", form.expires_at)
    text, token = await tokens.create(form.name, Role[form.role.upper()], expires_at, by=by)
    return {**describe_token(token), "token": text}


def describe_token(token: NamedToken) -> dict[str, Any]:
    """Describe a token without its secret."""
    moments = {"created_at": to_iso(token.created_at), "expires_at": to_iso(token.expires_at)}
    return {"id": token.id, "name": token.name, "role": token.role, **moments}
