"""The page of named admin tokens."""

from __future__ import annotations

from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from proxy.auth.admin_tokens import DEFAULT_DAYS, AdminTokens, Role
from proxy.clock import Clock, to_iso
from proxy.console.door import PATH, ConsoleDoor, Visit
from proxy.console.queries import drop_empty
from proxy.console.questions import Question
from proxy.errors import NotFound
from proxy.http.bodies import check_form
from proxy.routes.admin_tokens import NewToken, make_token, read_tokens
from proxy.routes.queries import known_query
from proxy.tenants.strict import is_name

PAGE_ROWS = 50
_NO_TOKEN = "There is no such token."


class TokenPages:
    """Show named tokens; create and revoke them."""

    def __init__(self, door: ConsoleDoor, tokens: AdminTokens, clock: Clock) -> None:
        self._door = door
        self._tokens = tokens
        self._clock = clock

    def routes(self) -> list[Route]:
        return [
            self._door.page("/tokens", self.list_tokens),
            self._door.action("/tokens", self.create_token, Role.ADMIN),
            *self._door.confirmed_action("/tokens/{token}/revoke", self.ask_to_revoke, self.revoke_token, Role.ADMIN),
        ]

    async def list_tokens(self, visit: Visit) -> Response:
        return await self._show(visit, drop_empty(known_query(visit.request, "cursor")))

    async def create_token(self, visit: Visit) -> Response:
        made = await make_token(self._tokens, check_form(NewToken, drop_empty(visit.fields)), by=visit.author)
        # Not behind a redirect: the token is in this one answer, and in nothing that could be asked for again.
        return await self._show(visit, {}, made["token"], 201)

    async def ask_to_revoke(self, visit: Visit) -> Question:
        name = visit.request.path_params["token"]
        roles = {token.name: token.role for token in await self._tokens.list_named()}
        if name not in roles:
            raise NotFound(_NO_TOKEN)
        consequence = f"Its role is {roles[name]}. Its console sessions end too. This cannot be undone."
        return Question(f"Revoke the token {name}?", consequence, "Revoke", "/tokens")

    async def revoke_token(self, visit: Visit) -> Response:
        name = visit.request.path_params["token"]
        if not (is_name(name) and await self._tokens.revoke(name, by=visit.author)):
            raise NotFound(_NO_TOKEN)
        return RedirectResponse(f"{PATH}/tokens", 303)

    async def _show(self, visit: Visit, query: dict[str, str], new_token: str = "", status: int = 200) -> Response:
        page = await read_tokens(self._tokens, {**query, "limit": str(PAGE_ROWS)})
        more = {"new_token": new_token, "now": to_iso(self._clock.now()), "days": DEFAULT_DAYS}
        return visit.respond("tokens.html", status, **page, **more)
