"""What the parts of the stack keep in an ASGI scope, and how they read a header from it."""

from __future__ import annotations

from starlette.types import Scope

#: In the state of a request: the headers that its answer has beside its own, and its status once the answer has begun.
SHOWN, STATUS = "shown", "status"
#: And whether fal may have run what was asked, so that asking again may run it again.
MAY_HAVE_RUN = "may_have_run"
#: And whether its whole body has arrived, so that reading it waits for nothing. Only this program's own server says so.
HAS_BODY = "has_body"
#: Every answer is its caller's own, and is what its content-type says, unless a route says otherwise.
NO_STORE = (b"cache-control", b"no-store")
NOSNIFF = (b"x-content-type-options", b"nosniff")


def set_cache_control(scope: Scope, value: bytes) -> None:
    """Say how an answer may be cached, instead of not at all."""
    shown = scope["state"][SHOWN]
    shown[shown.index(NO_STORE)] = (b"cache-control", value)


def show_header(scope: Scope, name: str, value: str) -> None:
    """Add a header to the response of a request, whatever that becomes."""
    scope["state"][SHOWN].append((name.encode("latin-1"), value.encode("latin-1")))


def values_of(scope: Scope, name: bytes) -> list[str]:
    """Return all values of a request header, in their order."""
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def header_of(scope: Scope, name: bytes) -> str | None:
    """Return the first value of a request header, without the objects that Starlette makes of all of them."""
    for key, value in scope["headers"]:
        if key == name:
            given: str = value.decode("latin-1")
            return given
    return None
