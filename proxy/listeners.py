"""The listeners of a server, as its application sees them in the state of a request."""

from __future__ import annotations

#: The key in the state; it is there only for requests of another listener than the public one.
LISTENER = "listener"
#: For operators alone: `PROXY_OPS_PORT`.
OPERATIONS = "operations"
