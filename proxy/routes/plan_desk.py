"""Plan files that operators send: checked, compared with what holds, and applied."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from proxy.catalog import Catalog
from proxy.errors import BadRequest
from proxy.stores.audit import Author
from proxy.tenants.directory import Directory
from proxy.tenants.plan_diff import describe_dry_run
from proxy.tenants.plan_file import problems_of
from proxy.tenants.plans import PlanFile


class PlanDesk:
    """Checks and applies plan files, for the routes and the console."""

    def __init__(self, directory: Directory, catalog: Catalog) -> None:
        self._directory = directory
        self._catalog = catalog

    async def preview(self, file: PlanFile) -> dict[str, Any]:
        """Describe as JSON what a file would change, and change nothing.

        Raises:
            BadRequest: it cannot be applied; the text says why.
            StoreUnavailable: the database does not answer.
        """
        await self._check(file)
        return describe_dry_run(await self._directory.preview(file))

    async def apply(self, file: PlanFile, *, by: Author) -> bool:
        """Make a file hold; False when it did already.

        Raises:
            BadRequest, StoreUnavailable: as `preview`.
        """
        await self._check(file)
        return await self._directory.apply(file, by=by)

    async def _check(self, file: PlanFile) -> None:
        known = await self._directory.snapshot()
        problems = problems_of(file.model_dump(mode="json"), self._catalog, known)
        if problems := [*problems, *_endpoint_problems(file, self._catalog)]:
            raise BadRequest("; ".join(problems))
        if any(identity.jwks_file for tenant in file.tenants for identity in tenant.identity):
            raise BadRequest("identity: jwks_file belongs in the PROXY_CONFIG file; send what it holds as jwks")


def _endpoint_problems(file: PlanFile, catalog: Catalog) -> Iterator[str]:
    """Yield a sentence for each endpoint of a file that is new, or has a schema: a request can set only prices."""
    for one in file.endpoints:
        if one.schema_ is not None:
            yield f"endpoints: {one.id}: schema belongs in the PROXY_CONFIG file, which the proxy reads at the start"
        elif one.id not in catalog:
            yield f"endpoints: {one.id} is not in the catalogue"
