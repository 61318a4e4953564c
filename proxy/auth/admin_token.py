"""The token that opens the admin API."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from proxy.errors import NotAllowed, Unauthenticated
from proxy.settings import Secret


class AdminToken:
    """The operator's token, or none: then the admin API is closed."""

    def __init__(self, token: Secret | None) -> None:
        self._token = token

    def replace(self, token: Secret | None) -> None:
        """Take another one from now on."""
        self._token = token

    def check(self, authorization: Sequence[str]) -> None:
        """Make sure that the `Authorization` headers of a request are the operator's.

        Raises:
            NotAllowed: there is no token.
            Unauthenticated: it is not the one that was sent, or not sent once.
        """
        if self._token is None:
            raise NotAllowed("The admin API is closed: PROXY_ADMIN_TOKEN is not set.")
        wanted = f"Bearer {self._token.reveal()}".encode()
        if len(authorization) != 1 or not hmac.compare_digest(authorization[0].encode(), wanted):
            raise Unauthenticated("The admin API needs 'Authorization: Bearer <admin token>'.")
