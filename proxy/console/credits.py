"""The pages of grants and overrides: what operators give beside the plan."""

from __future__ import annotations

import secrets
from typing import Any, get_args

from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from proxy.auth.admin_tokens import Role
from proxy.auth.sessions import SUBJECT_RULE, is_subject
from proxy.calls.call import parse_key
from proxy.console.door import PATH, ConsoleDoor, Visit
from proxy.console.queries import drop_empty
from proxy.console.questions import Question
from proxy.errors import BadRequest, NotFound
from proxy.http.bodies import check_form, read_document
from proxy.routes.grants import Grants, NewGrant
from proxy.routes.operators import subject_of
from proxy.routes.overrides import NewOverride, OverrideEditor, describe_override, list_overrides_of
from proxy.routes.paging import cut_page, parse_name_cursor, parse_time_cursor
from proxy.routes.queries import known_query
from proxy.routes.tenants import find_tenant
from proxy.stores.grants import GrantFilter
from proxy.tenants.directory import Directory
from proxy.tenants.plans import Tenant, Unit

PAGE_ROWS = 50
_NO_OVERRIDE = "This subject has no override."


class CreditPages:
    """Show grants and overrides of a tenant; give, set and clear them."""

    def __init__(self, door: ConsoleDoor, directory: Directory, grants: Grants, editor: OverrideEditor) -> None:
        self._door = door
        self._directory = directory
        self._grants = grants
        self._editor = editor

    def routes(self) -> list[Route]:
        door, grants, overrides = self._door, "/tenants/{tenant}/grants", "/tenants/{tenant}/overrides"
        return [
            door.page(grants, self.list_grants),
            door.action(grants, self.add_grant, Role.OPERATOR),
            door.page(overrides, self.list_overrides),
            door.action(overrides, self.put_override, Role.OPERATOR),
            *door.confirmed_action(
                f"{overrides}/clear", self.ask_to_clear, self.clear_override, Role.OPERATOR, "subject"
            ),
        ]

    async def list_grants(self, visit: Visit) -> Response:
        query = drop_empty(known_query(visit.request, "subject", "cursor"))
        _, tenant = await find_tenant(self._directory, visit.request.path_params["tenant"])
        subject = subject_of(query)
        after = parse_time_cursor(query.get("cursor"))
        wanted = GrantFilter(tenant.id, None if subject is None else (subject,), after=after)
        page = await self._grants.list_grants(wanted, PAGE_ROWS)
        # A form that is sent twice gives one grant.
        more: dict[str, Any] = {"units": get_args(Unit), "once": secrets.token_urlsafe(16)}
        return visit.respond("grants.html", **page, **more, tenant=tenant.id, subject=subject or "")

    async def add_grant(self, visit: Visit) -> Response:
        _, tenant = await find_tenant(self._directory, visit.request.path_params["tenant"])
        fields: dict[str, Any] = drop_empty(visit.fields)
        key = parse_key([fields.pop("once")] if "once" in fields else [])
        if "amount" in fields:
            fields["amount"] = _to_number(fields["amount"])
        await self._grants.give(tenant.id, check_form(NewGrant, fields), key, by=visit.author)
        return _return_to(tenant, "grants")

    async def list_overrides(self, visit: Visit) -> Response:
        query = drop_empty(known_query(visit.request, "cursor"))
        after = parse_name_cursor(query.get("cursor"))
        snapshot, tenant = await find_tenant(self._directory, visit.request.path_params["tenant"])
        found = [(subject, one) for subject, one in list_overrides_of(snapshot, tenant.id) if subject > after]
        page, cursor = cut_page(found, PAGE_ROWS, lambda entry: entry[0])
        overrides = [describe_override(*entry) for entry in page]
        plans = sorted(snapshot.plans)
        return visit.respond("overrides.html", overrides=overrides, cursor=cursor, plans=plans, tenant=tenant.id)

    async def put_override(self, visit: Visit) -> Response:
        _, tenant = await find_tenant(self._directory, visit.request.path_params["tenant"])
        fields: dict[str, Any] = drop_empty(visit.fields)
        subject = fields.pop("subject", "")
        if not is_subject(subject):
            raise BadRequest(f"subject {SUBJECT_RULE}.")
        if "limits" in fields:
            fields["limits"] = read_document(fields["limits"])
        await self._editor.put(tenant, subject, check_form(NewOverride, fields), by=visit.author)
        return _return_to(tenant, "overrides")

    async def ask_to_clear(self, visit: Visit) -> Question:
        snapshot, tenant = await find_tenant(self._directory, visit.request.path_params["tenant"])
        subject = visit.fields["subject"]
        if snapshot.overrides.get(tenant.id, subject) is None:
            raise NotFound(_NO_OVERRIDE)
        consequence = f"This user of {tenant.id} has the limits of the plan again at once."
        return Question(f"Clear the override of {subject}?", consequence, "Clear", f"/tenants/{tenant.id}/overrides")

    async def clear_override(self, visit: Visit) -> Response:
        _, tenant = await find_tenant(self._directory, visit.request.path_params["tenant"])
        subject = visit.fields.get("subject", "")
        if not (is_subject(subject) and await self._editor.clear(tenant.id, subject, by=visit.author)):
            raise NotFound(_NO_OVERRIDE)
        return _return_to(tenant, "overrides")


def _to_number(text: str) -> object:
    """Read a number of JSON; return the text itself if it is not one, which the form then refuses."""
    try:
        return read_document(text)
    except BadRequest:
        return text


def _return_to(tenant: Tenant, page: str) -> Response:
    return RedirectResponse(f"{PATH}/tenants/{tenant.id}/{page}", 303)
