"""The pages that delete a tenant, and forget a user: for good, so the name has to be typed."""

from __future__ import annotations

from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from proxy.auth.admin_tokens import Role
from proxy.auth.forgetting import Forgetting
from proxy.clock import to_iso
from proxy.console.door import PATH, ConsoleDoor, Visit
from proxy.console.subjects import check_subject
from proxy.errors import BadRequest, NotFound
from proxy.routes.queries import known_query
from proxy.routes.tenants import find_tenant
from proxy.tenants.directory import Directory
from proxy.tenants.removal import TenantRemoval


class RemovalPages:
    """Ask whether to delete a tenant or forget a user, and do it."""

    def __init__(self, door: ConsoleDoor, directory: Directory, removal: TenantRemoval, forgetting: Forgetting) -> None:
        self._door = door
        self._directory = directory
        self._removal = removal
        self._forgetting = forgetting

    def routes(self) -> list[Route]:
        tenant, subject = "/tenants/{tenant}/delete", "/tenants/{tenant}/subject/forget"
        return [
            self._door.page(tenant, self.ask_about_tenant, Role.ADMIN),
            self._door.action(tenant, self.delete_tenant, Role.ADMIN),
            self._door.page(subject, self.ask_about_subject, Role.ADMIN),
            self._door.action(subject, self.forget_subject, Role.ADMIN),
        ]

    async def ask_about_tenant(self, visit: Visit) -> Response:
        known_query(visit.request)
        name, snapshot = visit.request.path_params["tenant"], await self._directory.snapshot()
        uncleared = snapshot.find_uncleared(name)
        if uncleared is None and name not in snapshot.tenants:
            raise NotFound("There is no such tenant.")
        deleted_at = None if uncleared is None else to_iso(uncleared.deleted_at)
        return visit.respond("delete_tenant.html", tenant=name, deleted_at=deleted_at)

    async def delete_tenant(self, visit: Visit) -> Response:
        name = visit.request.path_params["tenant"]
        _check_typed(visit, name)
        former = await self._removal.delete_or_finish(name, by=visit.author)
        return RedirectResponse(f"{PATH}/tenants/{former.records}", 303)

    async def ask_about_subject(self, visit: Visit) -> Response:
        subject = known_query(visit.request, "name").get("name", "")
        _, tenant = await find_tenant(self._directory, visit.request.path_params["tenant"])
        check_subject(subject)
        return visit.respond("forget_subject.html", tenant=tenant.id, subject=subject)

    async def forget_subject(self, visit: Visit) -> Response:
        _, tenant = await find_tenant(self._directory, visit.request.path_params["tenant"])
        subject = visit.fields.get("subject", "")
        check_subject(subject)
        _check_typed(visit, subject)
        await self._forgetting.forget(tenant.id, subject, by=visit.author)
        return RedirectResponse(f"{PATH}/tenants/{tenant.id}/subjects", 303)


def _check_typed(visit: Visit, name: str) -> None:
    """Make sure that the operator typed the name of what is to be removed.

    Raises:
        BadRequest: it was not.
    """
    if visit.fields.get("confirm") != name:
        raise BadRequest("confirm: type the name exactly as it stands there; nothing has changed.")
