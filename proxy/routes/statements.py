"""Monthly statements: of a tenant for its key, and of any tenant for the operator."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from slowapi import Limiter
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from proxy.auth.admin_tokens import Role
from proxy.auth.authenticator import Authenticator
from proxy.clock import Clock
from proxy.errors import BadRequest, NotAllowed, NotFound
from proxy.http.static_page import StaticPage
from proxy.limits.rates import DESCRIPTION_LIMIT, RateLimiter
from proxy.limits.statements import COLUMNS, PRICE, Statement, parse_month, read_statement
from proxy.routes.admin_door import AdminDoor
from proxy.routes.queries import known_query
from proxy.spreadsheets import MEDIA_TYPE, to_csv
from proxy.stores.base import Stores
from proxy.tenants.directory import Directory

if TYPE_CHECKING:
    from jinja2 import Template

#: The page's stylesheet, which browsers ask for without a credential. It holds nothing of any tenant.
STYLE_PATH = "/v1/statements/statement.css"
_FOLDER = Path(__file__).with_suffix("")
_CACHING = b"public, max-age=3600"
_POLICY = "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
#: From the page of a tenant key, and from that of the operator. A public URL may have a path of its own before both.
_STYLE_OF_KEY, _STYLE_OF_OPERATOR = "statement.css", "../../../../statements/statement.css"
_FORMATS = {"application/json": "json", "text/csv": "csv", "text/html": "html"}


class Statements:
    """Reads statements, and writes them in the format that a request asks for."""

    def __init__(self, stores: Stores, clock: Clock) -> None:
        self._stores = stores
        self._clock = clock

    async def respond(self, request: Request, tenant: str, style: str) -> Response:
        """Answer with the statement of the month that the path names.

        Args:
            style: where the page finds its stylesheet, relative to itself.

        Raises:
            BadRequest: it is no month, or has not begun; or the format is unknown.
            StoreUnavailable: the ledger does not answer.
        """
        write = _WRITERS[_format_of(request)]
        answer = write(await self.read(tenant, request.path_params["month"]), style)
        answer.headers["vary"] = "Accept"
        return answer

    async def read(self, tenant: str, month: str) -> Statement:
        """Read the statement of a month, written as YYYY-MM.

        Raises:
            BadRequest: it is no month, or has not begun.
            StoreUnavailable: the ledger does not answer.
        """
        now = self._clock.now()
        period = parse_month(month, now)
        return await read_statement(self._stores.ledger, self._stores.statements, tenant, period, now)


def _format_of(request: Request) -> str:
    """Choose the format that the query names, or else the first known one that `Accept` names.

    Raises:
        BadRequest: the query names another one.
    """
    wanted = known_query(request, "format").get("format")
    if wanted is None:
        accepted = (part.partition(";")[0].strip().lower() for part in request.headers.get("accept", "").split(","))
        return next((_FORMATS[one] for one in accepted if one in _FORMATS), "json")
    if wanted not in _WRITERS:
        raise BadRequest(f"format: {wanted[:40]!r} is not one of {', '.join(_WRITERS)}.")
    return wanted


def _write_json(statement: Statement, _style: str) -> Response:
    return JSONResponse(statement.describe())


def _write_csv(statement: Statement, _style: str) -> Response:
    name = f"statement-{statement.tenant}-{statement.month}.csv"
    headers = {"content-disposition": f'attachment; filename="{name}"'}
    return Response(to_csv(COLUMNS, statement.list_rows()), headers=headers, media_type=MEDIA_TYPE)


def write_html(statement: Statement, style: str) -> Response:
    """Write a statement as a page.

    Args:
        style: where the page finds its stylesheet, relative to itself.
    """
    text = _template().render(statement=statement.describe(), price=PRICE, style=style)
    return HTMLResponse(text, headers={"content-security-policy": _POLICY, "referrer-policy": "no-referrer"})


_WRITERS: dict[str, Callable[[Statement, str], Response]] = {
    "json": _write_json,
    "csv": _write_csv,
    "html": write_html,
}


@cache
def _template() -> Template:
    """Load the page. Most processes never show one, so its engine is imported here."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("statement.html")


class StatementRoutes:
    """Let a tenant read its own statements, with its key."""

    def __init__(self, authenticator: Authenticator, limiter: RateLimiter, statements: Statements) -> None:
        self._authenticator = authenticator
        self._limiter = limiter
        self._statements = statements

    def routes(self) -> list[Route]:
        return [Route("/v1/statements/{month}", self.show, methods=["GET"])]

    async def show(self, request: Request) -> Response:
        caller = await self._authenticator.authenticate(request)
        if caller.session is not None:
            raise NotAllowed("Only a tenant key can read statements; GET /v1/usage reports what this user used.")
        await self._limiter.hit(caller, request.scope, polls=False)
        return await self._statements.respond(request, caller.tenant.id, _STYLE_OF_KEY)


class AdminStatementRoutes:
    """Let the operator read the statements of any tenant, also of a deleted one by the name of its records."""

    def __init__(self, door: AdminDoor, directory: Directory, statements: Statements) -> None:
        self._door = door
        self._directory = directory
        self._statements = statements

    def routes(self) -> list[Route]:
        return [self._door.route("GET", "/tenants/{tenant}/statements/{month}", self.show_statement, Role.VIEWER)]

    async def show_statement(self, request: Request) -> Response:
        tenant = request.path_params["tenant"]
        if not (await self._directory.snapshot()).has_records(tenant):
            raise NotFound("There is no such tenant.")
        return await self._statements.respond(request, tenant, _STYLE_OF_OPERATOR)


def style_routes(flood_guard: Limiter, path: str = STYLE_PATH) -> list[Route]:
    """Make the route of the page's stylesheet."""
    page = StaticPage(_FOLDER, {"statement.css": "statement.css"}, policy=_POLICY, caching=_CACHING)

    async def statement_style(request: Request) -> Response:
        return await page.get_response("statement.css", request.scope)

    # slowapi knows functions by their names: under one name, a request would be counted once for every path.
    statement_style.__name__ = f"statement_style_{path}"
    return [Route(path, flood_guard.limit(DESCRIPTION_LIMIT)(statement_style), methods=["GET"])]
