"""What the application answers, read from the application."""

from __future__ import annotations

from starlette.routing import Route

from proxy.app import create_app
from proxy.settings import read
from proxy.targets import METHODS


def answered_routes() -> set[tuple[str, str]]:
    """(path, method) of every route; HEAD goes with GET. Routes without methods leave them to `proxy.targets`."""
    environ = {"FAL_KEY": "id:secret", "PROXY_SESSION_SECRETS": "x" * 32, "PROXY_PLAYGROUND": "on"}
    app = create_app(read(environ))
    routes = [route for route in app.routes if isinstance(route, Route)]
    assert len(routes) == len(app.routes)
    return {(route.path, method) for route in routes for method in route.methods or METHODS if method != "HEAD"}


def admin_routes() -> set[tuple[str, str]]:
    """(method, path) of every route of the admin API."""
    return {(method, path) for path, method in answered_routes() if path.startswith("/v1/admin")}
