"""What the parts of the stack keep in an ASGI scope, and how they read a header from it."""

from __future__ import annotations

from starlette.types import Scope

#: In the state of a request: the headers that its answer has beside its own, and its status once the answer has begun.
SHOWN, STATUS = "shown", "status"


def header_of(scope: Scope, name: bytes) -> str | None:
    """The first value of a request header, without the objects that Starlette makes of all of them."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)
