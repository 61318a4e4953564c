"""What commands ask of a running proxy, with the admin token."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from proxy import settings
from proxy.cli.output import refuse, refuse_on_error

TIMEOUT_SECONDS = 30.0
Address = Annotated[
    str | None, typer.Option("--url", help="Where the proxy answers its operator; PROXY_PUBLIC_URL or its ops port.")
]


def ask_deployment(method: str, path: str, url: str | None) -> Any:
    """Ask a running proxy, and give the JSON of its answer."""
    # Only commands that ask something load it.
    import httpx

    base, token = refuse_on_error(lambda: settings.read_operator(os.environ))
    address = f"{(url or base).rstrip('/')}{path}"
    try:
        answer = httpx.request(
            method, address, headers={"authorization": f"Bearer {token.reveal()}"}, timeout=TIMEOUT_SECONDS
        )
        document = answer.json()
    except httpx.InvalidURL:
        refuse([f"--url: {url!r} is not a URL"])
    except httpx.HTTPError as problem:
        refuse([f"{address} does not answer ({type(problem).__name__}); give the proxy's address with --url"])
    except ValueError:
        refuse([f"{address} does not answer as this proxy does (status {answer.status_code}); check --url"])
    if answer.is_error:
        message = document.get("message") or document.get("detail") if isinstance(document, dict) else None
        refuse([f"the proxy refused ({answer.status_code}): {message or 'no reason given'}"])
    return document
