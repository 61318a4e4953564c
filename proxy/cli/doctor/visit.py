"""A caller of the deployment that is examined."""

from __future__ import annotations

import contextlib
from typing import Any

import httpx


class Visit:
    """Asks the deployment, with a credential where one is needed.

    Attributes:
        clock_difference: by how many seconds the proxy's clock is ahead of this one, once it said the time.
    """

    def __init__(self, http: httpx.Client, key: str, session: str) -> None:
        self.http = http
        self.key = key
        self.clock_difference: float | None = None
        self._session = session
        self._is_own = False

    @property
    def has_credential(self) -> bool:
        return bool(self.key or self._session)

    @property
    def has_session(self) -> bool:
        return bool(self._session)

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Ask with the session."""
        headers = {"authorization": f"Bearer {self._session}", **options.pop("headers", {})}
        return self.http.request(method, path, headers=headers, **options)

    def open_stream(self, path: str, **options: Any) -> contextlib.AbstractContextManager[httpx.Response]:
        """Post with the session, and read the answer as it comes."""
        headers = {"authorization": f"Bearer {self._session}", **options.pop("headers", {})}
        return self.http.stream("POST", path, headers=headers, **options)

    def begin_session(self, token: str) -> None:
        """Use a session that was minted for this visit from now on."""
        self._session, self._is_own = token, True

    def end_session(self) -> None:
        """Revoke the session, if it was minted for this visit."""
        if self._is_own:
            with contextlib.suppress(httpx.HTTPError):
                self.ask("DELETE", "/v1/session")


def refusal_of(answer: httpx.Response) -> dict[str, Any] | None:
    """Return the proxy's own refusal; None if the answer is none."""
    try:
        document = answer.json()
    except ValueError:
        return None
    return document if isinstance(document, dict) and "error_type" in document else None


def describe(answer: httpx.Response) -> str:
    """Describe an answer in a few words."""
    refusal = refusal_of(answer)
    return f"{answer.status_code} {refusal['error_type']}" if refusal else f"{answer.status_code}, not by the proxy"
