"""Pages: templates with every value escaped, under a policy that runs no inline script and loads only our own files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse, Response

from proxy.auth.admin_tokens import Role

FOLDER = Path(__file__).parent
#: No other page may show these in a frame, and no form leads to another site.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
#: What the pages call a column of the ledger whose name does not say it to a person.
_HEADINGS = {"subject": "User", "compute_seconds": "Seconds", "usd": "USD", "upload_bytes": "Bytes uploaded"}
_HEADERS: Mapping[str, str] = {
    "content-security-policy": POLICY,
    "x-frame-options": "DENY",
    # Not `no-referrer`: browsers would then give the origin of a form as `null`.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}


class Pages:
    """Renders the templates of the console."""

    def __init__(self) -> None:
        # Autoescape for every name: a template whose name ends unusually is no exception.
        self._templates = Environment(
            autoescape=True,
            undefined=StrictUndefined,
            loader=FileSystemLoader(FOLDER / "templates"),
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.globals["Role"] = Role
        self._templates.filters["json"] = _format_json
        self._templates.filters["moment"] = _format_moment
        self._templates.filters["amount"] = _format_amount
        self._templates.filters["heading"] = _format_heading
        self._templates.filters["details"] = _format_details

    def respond(self, template: str, context: Mapping[str, Any], status: int = 200) -> Response:
        """Answer with a page; `no-store` is what every answer says already."""
        return HTMLResponse(self.render(template, context), status, headers=_HEADERS)

    def render(self, template: str, context: Mapping[str, Any]) -> str:
        return self._templates.get_template(template).render(context)


def _format_json(value: object) -> str:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS).decode()


def _format_moment(iso: str | None) -> str:
    """Write a moment of ISO 8601 in UTC as people read it."""
    return "never" if iso is None else f"{iso[:10]} {iso[11:19]} UTC"


def _format_amount(value: float) -> str:
    return f"{value:,.6f}".rstrip("0").rstrip(".")


def _format_heading(column: str) -> str:
    """Name a column of usage, as all tables spell it."""
    return _HEADINGS.get(column, column.capitalize())


def _format_details(details: Mapping[str, Any]) -> str:
    """List the details of an alert under the names that its webhook has; those without a value are left out."""
    return ", ".join(f"{name}: {_format_detail(name, value)}" for name, value in details.items() if value is not None)


def _format_detail(name: str, value: object) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _format_amount(value)
    if isinstance(value, str) and (name == "hour" or name.endswith(("_at", "_since"))):
        return _format_moment(value)
    return str(value)
