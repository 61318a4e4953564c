"""What the parts of the stack keep in an ASGI scope, and how they read a header from it."""

from __future__ import annotations

from starlette.types import Scope

#: In the state of a request: the headers that its answer has beside its own, and its status once the answer has begun.
SHOWN, STATUS = "shown", "status"
#: Every answer is its caller's own, and is what its content-type says, unless a route says otherwise.
NO_STORE = (b"cache-control", b"no-store")
NOSNIFF = (b"x-content-type-options", b"nosniff")


def set_cache_control(scope: Scope, value: bytes) -> None:
    """Say how an answer may be cached, instead of not at all."""
    shown = scope["state"][SHOWN]
    shown[shown.index(NO_STORE)] = (b"cache-control", value)


def add_vary(scope: Scope, name: bytes) -> None:
    """Say that an answer also depends on a request header; on the Origin each does."""
    scope["state"][SHOWN].append((b"vary", name))


def header_of(scope: Scope, name: bytes) -> str | None:
    """The first value of a request header, without the objects that Starlette makes of all of them."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)
