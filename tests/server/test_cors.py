"""CORS: a page may call from the origins of the settings and of the tenants, and reads refusals too."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from proxy.http.cors import CORS_REQUEST_HEADERS, CORS_RESPONSE_HEADERS
from tests.server.conftest import EVERYWHERE
from tests.support.stack import Stack

#: What the published fal clients set on a call from a page.
CLIENT_HEADERS = "authorization,content-type,x-fal-target-url,x-fal-queue-priority,x-fal-user-agent"


@pytest.fixture
def page(production: Stack) -> Iterator[httpx.Client]:
    with production.client("") as client:
        yield client


def preflight(
    page: httpx.Client, origin: str, *, method: str = "POST", headers: str = CLIENT_HEADERS
) -> httpx.Response:
    asked = {"origin": origin, "access-control-request-method": method, "access-control-request-headers": headers}
    return page.options("/api/fal/proxy", headers=asked)


def names(header: str) -> set[str]:
    return {name.strip().lower() for name in header.split(",")}


@pytest.mark.parametrize("origin", ["{tenant}", "https://app.globex.example", EVERYWHERE])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
def test_an_allowed_page_is_told_what_it_may_send(
    production: Stack, page: httpx.Client, origin: str, method: str
) -> None:
    origin = origin.format(tenant=production.other_origin)
    answer = preflight(page, origin, method=method)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == origin
    assert answer.headers["access-control-allow-credentials"] == "true"
    assert names(answer.headers["access-control-allow-headers"]) >= names(CLIENT_HEADERS) | set(CORS_REQUEST_HEADERS)
    assert method in answer.headers["access-control-allow-methods"]
    assert "origin" in names(answer.headers["vary"])


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "https://everywhere.example.evil", "http://everywhere.example", "https://example"],
)
def test_a_foreign_page_is_refused_in_the_shape_of_errors(page: httpx.Client, origin: str) -> None:
    answer = preflight(page, origin)
    assert (answer.status_code, answer.json()["error_type"]) == (403, "origin_not_allowed")
    assert "access-control-allow-origin" not in answer.headers
    assert "origin" in names(answer.headers["vary"])


def test_a_method_or_a_header_nobody_needs_is_refused(page: httpx.Client) -> None:
    assert preflight(page, EVERYWHERE, method="PATCH").status_code == 403
    assert preflight(page, EVERYWHERE, headers="authorization,x-anything").status_code == 403


@pytest.mark.parametrize("origin", ["{tenant}", EVERYWHERE])
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/livez", 200),
        ("GET", "/v1/session", 401),
        ("GET", "/nowhere", 404),
        ("PUT", "/v1/endpoints", 405),
        ("POST", "/v1/sessions/guest", 400),
        ("PATCH", "/api/fal/proxy", 401),
    ],
)
def test_an_allowed_page_can_read_every_answer(
    production: Stack, page: httpx.Client, origin: str, method: str, path: str, status: int
) -> None:
    origin = origin.format(tenant=production.other_origin)
    content = b"{" if method == "POST" else None
    answer = page.request(method, path, headers={"origin": origin}, content=content)
    assert answer.status_code == status
    assert answer.headers["access-control-allow-origin"] == origin
    assert answer.headers["access-control-allow-credentials"] == "true"
    assert names(answer.headers["access-control-expose-headers"]) == set(CORS_RESPONSE_HEADERS)
    assert "origin" in names(answer.headers["vary"])


def test_a_foreign_page_reads_nothing(page: httpx.Client) -> None:
    for path in ("/livez", "/v1/session", "/nowhere"):
        answer = page.get(path, headers={"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in answer.headers
        assert "origin" in names(answer.headers.get("vary", "origin"))


def test_the_headers_of_our_errors_can_be_read(page: httpx.Client) -> None:
    answer = page.get("/v1/session", headers={"origin": EVERYWHERE})
    assert answer.headers["x-fal-error-type"] == "unauthenticated"
    assert {"x-fal-error-type", "x-request-id", "retry-after"} <= names(answer.headers["access-control-expose-headers"])


def test_an_origin_counts_for_its_own_tenant_only(production: Stack, page: httpx.Client) -> None:
    """CORS lets a page of globex read answers; it does not let it use a cookie of acme."""
    headers = {"origin": "https://app.globex.example", "cookie": f"fal_session={production.token(tenant='acme')}"}
    answer = page.delete("/v1/session", headers=headers)
    assert answer.json()["error_type"] == "origin_not_allowed"
    headers["cookie"] = f"fal_session={production.token(tenant='globex')}"
    assert page.delete("/v1/session", headers=headers).status_code == 204
