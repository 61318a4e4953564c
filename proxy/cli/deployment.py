"""What commands ask of a running proxy, with the admin token."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from proxy import settings
from proxy.cli.output import refuse, refuse_on_error

TIMEOUT_SECONDS = 30.0
Address = Annotated[
    str | None, typer.Option("--url", help="Where the proxy answers its operator; PROXY_PUBLIC_URL or its ops port.")
]


def ask_deployment(method: str, path: str, url: str | None, fields: Sequence[str] = ()) -> dict[str, Any]:
    """Ask a running proxy, and give the JSON object of its answer, which has these fields."""
    # Only commands that ask something load it.
    import httpx

    from proxy.cli.answers import bound_answer

    base, token = refuse_on_error(lambda: settings.read_operator(os.environ))
    address = f"{(url or base).rstrip('/')}{path}"
    if "@" in address.removesuffix(path):
        # Not quoted, and not asked: the client would send these in the place of the token.
        refuse(["--url: has a user or a password; give it without, as https://ai.example.com"])
    try:
        with httpx.Client(timeout=TIMEOUT_SECONDS, event_hooks={"response": [bound_answer]}) as http:
            answer = http.request(method, address, headers={"authorization": f"Bearer {token.reveal()}"})
        document = answer.json()
    except httpx.InvalidURL:
        refuse([f"--url: {url!r} is not a URL"])
    except httpx.HTTPError as problem:
        refuse([f"{address} does not answer ({type(problem).__name__}); give the proxy's address with --url"])
    except ValueError:
        document = None
    if answer.is_error and isinstance(document, dict):
        message = document.get("message") or document.get("detail")
        refuse([f"the proxy refused ({answer.status_code}): {message or 'no reason given'}"])
    if not isinstance(document, dict) or not document.keys() >= set(fields):
        refuse([f"{address} does not answer as this proxy does (status {answer.status_code}); check --url"])
    return document
