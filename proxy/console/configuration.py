"""The page of the configuration: the plans and tenants that hold now, and what another file would change."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import orjson
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from proxy.auth.admin_tokens import Role
from proxy.console.door import PATH, ConsoleDoor, Visit
from proxy.errors import BadRequest
from proxy.http.bodies import check_form
from proxy.redaction import Redactor
from proxy.routes.plan_desk import PlanDesk
from proxy.routes.queries import known_query
from proxy.tenants.directory import Directory, Snapshot
from proxy.tenants.plan_file import describe_file, dump_yaml
from proxy.tenants.plan_yaml import parse_text
from proxy.tenants.plans import PlanFile

#: Of a file that is pasted: reading YAML takes its time. Longer ones are for the command line.
MOST_CHARACTERS = 256 * 1024
#: Of the form that holds it, in which a character can take three bytes or more.
_MOST_BYTES = 1024 * 1024
#: The file names secrets and has none, but its URLs may have a password or a token in them.
_redactor = Redactor(())


class ConfigurationPages:
    """Show the plan file that holds now, compare another one with it, and apply that one."""

    def __init__(self, door: ConsoleDoor, directory: Directory, desk: PlanDesk) -> None:
        self._door = door
        self._directory = directory
        self._desk = desk

    def routes(self) -> list[Route]:
        path, action = "/configuration", self._door.action
        return [
            self._door.page(path, self.show),
            action(f"{path}/compare", self.compare, Role.ADMIN, _MOST_BYTES),
            action(f"{path}/apply", self.apply, Role.ADMIN, _MOST_BYTES),
        ]

    async def show(self, visit: Visit) -> Response:
        known_query(visit.request)
        snapshot = await self._directory.snapshot()
        text = await asyncio.to_thread(_write_file, snapshot)
        return visit.respond("configuration.html", text=_redactor.clean(text))

    async def compare(self, visit: Visit) -> Response:
        text = visit.fields.get("file", "")
        changes = await self._desk.preview(await _read_file(text))
        return visit.respond("changes.html", changes=changes["changes"], digest=_digest(changes), text=text)

    async def apply(self, visit: Visit) -> Response:
        file = await _read_file(visit.fields.get("file", ""))
        if _digest(await self._desk.preview(file)) != visit.fields.get("digest"):
            raise BadRequest("What the file would change is not what you saw any more; compare it again.")
        await self._desk.apply(file, by=visit.author)
        return RedirectResponse(f"{PATH}/configuration", 303)


def _write_file(snapshot: Snapshot) -> str:
    return dump_yaml(describe_file(snapshot, {}))


async def _read_file(text: str) -> PlanFile:
    """Read a text as a plan file.

    Raises:
        BadRequest: it is not one, or is too long; the message says why.
    """
    if not text.strip():
        raise BadRequest("file: paste a plan file first.")
    if len(text) > MOST_CHARACTERS:
        raise BadRequest(f"file: has more than {MOST_CHARACTERS} characters; use `fal-proxy tenants apply`.")
    try:
        # In a thread: a long file takes seconds.
        document: Any = await asyncio.to_thread(parse_text, text)
    except ValueError as problem:
        raise BadRequest(f"file: {problem}.") from None
    return check_form(PlanFile, document)


def _digest(changes: dict[str, Any]) -> str:
    return hashlib.sha256(orjson.dumps(changes, option=orjson.OPT_SORT_KEYS)).hexdigest()
