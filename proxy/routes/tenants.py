"""For the operator: the life of a tenant, after a plan file has named it."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from proxy.auth.admin_tokens import Role
from proxy.auth.forgetting import Forgetting
from proxy.auth.sessions import is_subject
from proxy.clock import to_iso
from proxy.errors import BadRequest, NotFound
from proxy.routes.admin_door import AdminDoor
from proxy.routes.queries import known_query, subject_in_path
from proxy.stores.removal import FormerTenant
from proxy.tenants.directory import Directory, Snapshot
from proxy.tenants.plans import Tenant
from proxy.tenants.removal import TenantRemoval
from proxy.tenants.strict import is_name


class TenantLifecycle:
    """Let the operator suspend, resume and delete tenants, and forget their users."""

    def __init__(self, door: AdminDoor, directory: Directory, removal: TenantRemoval, forgetting: Forgetting) -> None:
        self._door = door
        self._directory = directory
        self._removal = removal
        self._forgetting = forgetting

    def routes(self) -> list[Route]:
        return [
            self._door.route("POST", "/tenants/{tenant}/suspend", self.suspend, Role.OPERATOR),
            self._door.route("POST", "/tenants/{tenant}/resume", self.resume, Role.OPERATOR),
            self._door.route("DELETE", "/tenants/{tenant}", self.delete, Role.ADMIN),
            self._door.route("DELETE", "/tenants/{tenant}/subjects/{subject:path}", self.forget, Role.ADMIN),
        ]

    async def suspend(self, request: Request) -> Response:
        known_query(request)
        _, found = await find_tenant(self._directory, request.path_params["tenant"])
        await self._directory.suspend(found.id, by=self._door.author_of(request))
        return await self._show(found.id)

    async def resume(self, request: Request) -> Response:
        known_query(request)
        _, found = await find_tenant(self._directory, request.path_params["tenant"])
        await self._directory.resume(found.id, by=self._door.author_of(request))
        return await self._show(found.id)

    async def delete(self, request: Request) -> Response:
        known_query(request)
        name = request.path_params["tenant"]
        former = await self._removal.delete_or_finish(name, by=self._door.author_of(request))
        return JSONResponse(describe_former(former))

    async def forget(self, request: Request) -> Response:
        known_query(request)
        _, found = await find_tenant(self._directory, request.path_params["tenant"])
        subject = subject_in_path(request)
        if not is_subject(subject):
            raise NotFound("There is no such user.")
        await self._forgetting.forget(found.id, subject, by=self._door.author_of(request))
        return Response(status_code=204)

    async def _show(self, tenant: str) -> Response:
        snapshot, found = await find_tenant(self._directory, tenant)
        return JSONResponse(snapshot.describe(found))


def describe_former(former: FormerTenant) -> dict[str, Any]:
    """Describe a deleted tenant as JSON."""
    return {"id": former.id, "records": former.records, "deleted_at": to_iso(former.deleted_at)}


async def find_tenant(directory: Directory, id_: str) -> tuple[Snapshot, Tenant]:
    """Find the tenant with an id, and the reading of the directory that has it.

    Raises:
        NotFound: there is none.
    """
    snapshot = await directory.snapshot()
    found = snapshot.tenants.get(id_)
    if found is None:
        raise NotFound("There is no such tenant.")
    return snapshot, found


async def check_tenant(directory: Directory, id_: str | None) -> None:
    """Make sure that there is a tenant whose entries a listing is to show, or was one; None is all of them.

    Raises:
        BadRequest: no tenant can have this id.
        NotFound: none has, and none had.
    """
    if id_ is None:
        return
    if not is_name(id_):
        raise BadRequest("tenant must be the id of a tenant.")
    if not (await directory.snapshot()).has_had(id_):
        raise NotFound("There is no such tenant, and there was none.")
