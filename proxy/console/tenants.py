"""The pages of tenants: their plans, quotas and keys, and what an operator changes of them."""

from __future__ import annotations

from typing import Any

from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from proxy.auth.admin_tokens import Role
from proxy.clock import Clock
from proxy.console.door import PATH, ConsoleDoor, Visit
from proxy.console.questions import Question
from proxy.console.quotas import read_quotas
from proxy.errors import BadRequest, NotFound
from proxy.http.bodies import check_form
from proxy.limits.accounts import Payer
from proxy.routes.admin import NewKey, describe_key, list_keys_of
from proxy.routes.paging import cut_page, parse_name_cursor
from proxy.routes.queries import known_query
from proxy.routes.tenants import describe_former, find_tenant
from proxy.stores.directory import TenantKey
from proxy.stores.ledger import Ledger
from proxy.stores.removal import FormerTenant
from proxy.tenants import keys
from proxy.tenants.directory import Directory, Snapshot
from proxy.tenants.plans import Tenant

#: Rows of one page.
PAGE_ROWS = 50
#: Of a text to look for.
MOST_SOUGHT = 64
_NO_KEY = "There is no such key."


class TenantPages:
    """Show tenants, and suspend, resume and give keys to them."""

    def __init__(self, door: ConsoleDoor, directory: Directory, ledger: Ledger, clock: Clock) -> None:
        self._door = door
        self._directory = directory
        self._ledger = ledger
        self._clock = clock

    def routes(self) -> list[Route]:
        one, door = "/tenants/{tenant}", self._door
        return [
            door.page("/tenants", self.list_tenants),
            door.page(one, self.show_tenant),
            *door.confirmed_action(f"{one}/suspend", self.ask_to_suspend, self.suspend, Role.OPERATOR),
            door.action(f"{one}/resume", self.resume, Role.OPERATOR),
            door.action(f"{one}/keys", self.create_key, Role.ADMIN),
            *door.confirmed_action(f"{one}/keys/{{key}}/revoke", self.ask_to_revoke_key, self.revoke_key, Role.ADMIN),
        ]

    async def list_tenants(self, visit: Visit) -> Response:
        query = known_query(visit.request, "q", "cursor")
        sought, after = query.get("q", "").strip().lower(), parse_name_cursor(query.get("cursor"))
        if len(sought) > MOST_SOUGHT:
            raise BadRequest(f"q: look for {MOST_SOUGHT} characters or less.")
        snapshot = await self._directory.snapshot()
        names = sorted(name for name in snapshot.tenants if name > after and sought in name)
        page, cursor = cut_page(names, PAGE_ROWS, str)
        rows = [snapshot.describe(snapshot.tenants[name]) for name in page]
        # The latest are those that are looked for, and each name finds its own.
        former = [one for one in reversed(snapshot.former) if sought in one.id] if not after else []
        return visit.respond(
            "tenants.html",
            tenants=rows,
            sought=sought,
            cursor=cursor,
            number=len(snapshot.tenants),
            former=[_describe_former(one) for one in former[:PAGE_ROWS]],
            hidden_former=max(0, len(former) - PAGE_ROWS),
        )

    async def show_tenant(self, visit: Visit) -> Response:
        known_query(visit.request)
        name, snapshot = visit.request.path_params["tenant"], await self._directory.snapshot()
        if (former := snapshot.find_former(name)) is not None:
            return visit.respond("former.html", former=_describe_former(former))
        snapshot, tenant = await find_tenant(self._directory, name)
        return await self._show(visit, snapshot, tenant)

    async def ask_to_suspend(self, visit: Visit) -> Question:
        _, tenant = await self._find_tenant(visit)
        consequence = "All its calls are refused from now on, until you resume it."
        return Question(f"Suspend {tenant.id}?", consequence, "Suspend", f"/tenants/{tenant.id}")

    async def suspend(self, visit: Visit) -> Response:
        _, tenant = await self._find_tenant(visit)
        await self._directory.suspend(tenant.id, by=visit.author)
        return return_to(tenant)

    async def resume(self, visit: Visit) -> Response:
        _, tenant = await self._find_tenant(visit)
        await self._directory.resume(tenant.id, by=visit.author)
        return return_to(tenant)

    async def create_key(self, visit: Visit) -> Response:
        _, tenant = await self._find_tenant(visit)
        form = check_form(NewKey, visit.fields)
        text, record = keys.make(tenant.id, form.name, self._clock.now())
        await self._directory.add_key(record, by=visit.author)
        # Not behind a redirect: the key is in this one answer, and in nothing that could be asked for again.
        return await self._show(visit, await self._directory.snapshot(), tenant, new_key=text, status=201)

    async def ask_to_revoke_key(self, visit: Visit) -> Question:
        tenant, key = await self._find_key(visit)
        name = f"Its name is {key.name}. " if key.name else ""
        consequence = f"{name}Servers that use it are refused at once. This cannot be undone."
        return Question(f"Revoke the key {key.id} of {tenant.id}?", consequence, "Revoke", f"/tenants/{tenant.id}")

    async def revoke_key(self, visit: Visit) -> Response:
        tenant, key = await self._find_key(visit)
        if not await self._directory.revoke_key(key.id, by=visit.author):
            raise NotFound(_NO_KEY)
        return return_to(tenant)

    async def _find_tenant(self, visit: Visit) -> tuple[Snapshot, Tenant]:
        return await find_tenant(self._directory, visit.request.path_params["tenant"])

    async def _find_key(self, visit: Visit) -> tuple[Tenant, TenantKey]:
        snapshot, tenant = await self._find_tenant(visit)
        key = snapshot.keys.get(visit.request.path_params["key"])
        if key is None or key.tenant != tenant.id:
            raise NotFound(_NO_KEY)
        return tenant, key

    async def _show(
        self, visit: Visit, snapshot: Snapshot, tenant: Tenant, *, new_key: str = "", status: int = 200
    ) -> Response:
        terms = snapshot.terms_of(tenant, tenant.plan, is_guest=False)
        listed = list_keys_of(snapshot, tenant.id)
        context: dict[str, Any] = {
            "tenant": snapshot.describe(tenant),
            "limits": snapshot.plans[tenant.plan].model_dump(mode="json"),
            "quotas": await read_quotas(self._ledger, terms, Payer(tenant.id, ""), "tenant", self._clock.now()),
            "keys": [describe_key(key) for key in listed[-PAGE_ROWS:]],
            "hidden_keys": max(0, len(listed) - PAGE_ROWS),
            "new_key": new_key,
        }
        return visit.respond("tenant.html", status, **context)


def _describe_former(former: FormerTenant) -> dict[str, Any]:
    return {**describe_former(former), "is_cleared": former.is_cleared}


def return_to(tenant: Tenant) -> Response:
    """Show a tenant after a change, so that loading the page again repeats nothing."""
    return RedirectResponse(f"{PATH}/tenants/{tenant.id}", 303)
