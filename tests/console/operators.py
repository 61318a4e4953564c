"""An operator at the console, as a browser behaves: it keeps cookies, says where it is, and sends what forms hold."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from tests.support.limited import ADMIN_TOKEN, operating
from tests.support.stack import Stack

COOKIE, FORM_COOKIE = "fal_console", "fal_console_form"
_CSRF = re.compile(r'name="csrf" value="([0-9a-f]{64})"')


class Operator:
    """An operator with a browser."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.http = stack.client("")

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self.http.get(path, headers=headers)

    def post(self, path: str, fields: dict[str, str] | None = None, **headers: str) -> httpx.Response:
        """Send a form from a page of the console, with what that page holds against forgery."""
        return self.send(path, {"csrf": self.csrf(), **(fields or {})}, **headers)

    def send(self, path: str, fields: dict[str, str], **headers: str) -> httpx.Response:
        """Send exactly these fields, from a page of the console unless the headers say otherwise."""
        return self.http.post(path, data=fields, headers={"origin": self.stack.url, **headers})

    def csrf(self, path: str = "/console/tenants") -> str:
        page = self.get(path)
        match = _CSRF.search(page.text)
        assert match, page.text
        return match[1]

    def sign_in(self, token: str = ADMIN_TOKEN, **more: str) -> httpx.Response:
        return self.send("/console/sign-in", {"csrf": self.csrf("/console/sign-in"), "token": token, **more})

    @property
    def cookie(self) -> str | None:
        return self.http.cookies.get(COOKIE)

    def is_signed_in(self) -> bool:
        return self.get("/console/tenants").status_code == 200


@contextmanager
def operator_of(stack: Stack, token: str | None = ADMIN_TOKEN) -> Iterator[Operator]:
    """An operator who has signed in with a token; with None, one who has not."""
    operator = Operator(stack)
    with operator.http:
        if token is not None:
            answer = operator.sign_in(token)
            assert answer.status_code == 303, answer.text
        yield operator


def new_token(stack: Stack, name: str, role: str, **more: str) -> str:
    """A named admin token."""
    with operating(stack) as admin:
        answer = admin.post("/v1/admin/tokens", json={"name": name, "role": role, **more})
    assert answer.status_code == 201, answer.text
    token: str = answer.json()["token"]
    return token


def revoke_token(stack: Stack, name: str) -> None:
    with operating(stack) as admin:
        admin.delete(f"/v1/admin/tokens/{name}").raise_for_status()


def assert_refused(answer: httpx.Response, status: int, code: str) -> str:
    """The page of a refusal, as text."""
    assert (answer.status_code, answer.headers.get("x-fal-error-type")) == (status, code), answer.text
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    return html.unescape(answer.text)
