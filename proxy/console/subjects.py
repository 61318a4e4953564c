"""The pages of a tenant's users."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from proxy.auth.admin_tokens import Role
from proxy.auth.revocations import revoke_by_name
from proxy.auth.sessions import is_subject
from proxy.clock import Clock
from proxy.console.door import PATH, ConsoleDoor, Visit
from proxy.console.queries import drop_empty
from proxy.console.questions import Question
from proxy.console.quotas import read_quotas
from proxy.errors import NotFound
from proxy.limits.accounts import Payer
from proxy.routes.overrides import describe_override
from proxy.routes.queries import known_query
from proxy.routes.tenants import find_tenant
from proxy.routes.usage import UsageReports
from proxy.stores.ledger import Ledger
from proxy.tenants.caller import is_guest_name
from proxy.tenants.directory import Directory
from proxy.tenants.plans import Tenant

PAGE_ROWS = 50


class SubjectPages:
    """Show users by what they used, and sign one out."""

    def __init__(
        self, door: ConsoleDoor, directory: Directory, ledger: Ledger, reports: UsageReports, clock: Clock
    ) -> None:
        self._door = door
        self._directory = directory
        self._ledger = ledger
        self._reports = reports
        self._clock = clock

    def routes(self) -> list[Route]:
        return [
            self._door.page("/tenants/{tenant}/subjects", self.list_subjects),
            self._door.page("/tenants/{tenant}/subject", self.show_subject),
            *self._door.confirmed_action(
                "/tenants/{tenant}/subject/sign-out", self.ask_to_sign_out, self.sign_out, Role.OPERATOR, "subject"
            ),
        ]

    async def list_subjects(self, visit: Visit) -> Response:
        query = drop_empty(known_query(visit.request, "cursor"))
        _, tenant = await find_tenant(self._directory, visit.request.path_params["tenant"])
        wanted = {**query, "group_by": "subject", "limit": str(PAGE_ROWS)}
        return visit.respond(
            "subjects.html", report=await self._reports.report(tenant.id, None, wanted), tenant=tenant.id
        )

    async def show_subject(self, visit: Visit) -> Response:
        subject = known_query(visit.request, "name").get("name", "")
        snapshot, tenant = await find_tenant(self._directory, visit.request.path_params["tenant"])
        check_subject(subject)
        is_guest = is_guest_name(subject)
        plan = snapshot.plan_of(tenant, subject, is_guest=is_guest)
        terms = snapshot.subject_terms(tenant, subject, plan, is_guest=is_guest)
        override = snapshot.overrides.get(tenant.id, subject)
        context: dict[str, Any] = {
            "tenant": tenant.id,
            "subject": subject,
            "plan": plan,
            "override": None if override is None else describe_override(subject, override),
            "quotas": await read_quotas(self._ledger, terms, Payer(tenant.id, subject), "subject", self._clock.now()),
            "report": await self._reports.report(tenant.id, subject, {"group_by": "endpoint"}),
        }
        return visit.respond("subject.html", **context)

    async def ask_to_sign_out(self, visit: Visit) -> Question:
        tenant, subject = await self._find_subject(visit)
        consequence = f"This user of {tenant.id} needs a new session for the next call."
        return Question(f"End all sessions of {subject}?", consequence, "End all sessions", _page_of(tenant, subject))

    async def sign_out(self, visit: Visit) -> Response:
        tenant, subject = await self._find_subject(visit)
        await self._directory.revoke(revoke_by_name(tenant.id, None, subject, self._clock.now()), by=visit.author)
        return RedirectResponse(PATH + _page_of(tenant, subject), 303)

    async def _find_subject(self, visit: Visit) -> tuple[Tenant, str]:
        _, tenant = await find_tenant(self._directory, visit.request.path_params["tenant"])
        subject = visit.fields.get("subject", "")
        check_subject(subject)
        return tenant, subject


def _page_of(tenant: Tenant, subject: str) -> str:
    return f"/tenants/{tenant.id}/subject?name={quote(subject, safe='')}"


def check_subject(subject: str) -> None:
    """Make sure that a text can name a user.

    Raises:
        NotFound: it cannot.
    """
    if not is_subject(subject):
        raise NotFound("There is no such user.")
