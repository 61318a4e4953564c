"""CORS: a page may call from the origins of the settings and of the tenants, and reads refusals too."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from proxy.errors import OriginNotAllowed
from proxy.http.cors import CORS_REQUEST_HEADERS, CORS_RESPONSE_HEADERS
from proxy.http.refused_origins import MOST_ORIGINS, RefusedOrigins
from proxy.origins import OriginRefusal
from proxy.telemetry.log_limit import SECONDS
from proxy.telemetry.metrics import Metrics
from tests.server.conftest import EVERYWHERE
from tests.support.images import PIXEL
from tests.support.stack import Stack
from tests.support.waiting import wait_until

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
def test_an_allowed_page_learns_which_headers_it_may_send(
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


def test_a_method_or_header_that_no_route_uses_is_refused(page: httpx.Client) -> None:
    assert preflight(page, EVERYWHERE, method="PATCH").status_code == 403
    answer = preflight(page, EVERYWHERE, headers="authorization,x-anything, X-More")
    assert answer.status_code == 403 and "Disallowed CORS headers: x-anything, x-more" in answer.json()["message"]
    assert "authorization" not in answer.text


@pytest.mark.parametrize("headers", ["", ",", ", ,", "authorization,,content-type", ", Authorization ,"])
def test_empty_elements_of_a_list_of_headers_count_for_nothing(page: httpx.Client, headers: str) -> None:
    assert preflight(page, EVERYWHERE, headers=headers).status_code == 200


def test_a_page_may_ask_for_the_head_of_an_answer_with_a_credential(production: Stack, page: httpx.Client) -> None:
    answer = preflight(page, EVERYWHERE, method="HEAD", headers="authorization")
    assert answer.status_code == 200 and "HEAD" in answer.headers["access-control-allow-methods"]
    with production.client(headers={"origin": EVERYWHERE}) as alice:
        assert alice.head("/v1/session").headers["access-control-allow-origin"] == EVERYWHERE


def test_an_allowed_page_may_call_a_proxy_in_a_private_network(page: httpx.Client) -> None:
    asked = {"access-control-request-method": "POST", "access-control-request-private-network": "true"}
    answer = page.options("/v1/jobs", headers={**asked, "origin": EVERYWHERE})
    assert (answer.status_code, answer.headers["access-control-allow-private-network"]) == (200, "true")
    refused = page.options("/v1/jobs", headers={**asked, "origin": "https://evil.example"})
    assert refused.status_code == 403 and "access-control-allow-private-network" not in refused.headers


@pytest.mark.parametrize("origin", ["{tenant}", EVERYWHERE])
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/livez", 200),
        ("GET", "/v1/session", 401),
        ("GET", "/nowhere", 404),
        ("PUT", "/v1/endpoints", 405),
        ("POST", "/v1/sessions/cookie", 401),
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
    headers = {"origin": "https://app.globex.example", "cookie": production.cookie(production.token(tenant="acme"))}
    answer = page.delete("/v1/session", headers=headers)
    assert answer.json()["error_type"] == "origin_not_allowed"
    headers["cookie"] = production.cookie(production.token(tenant="globex"))
    assert page.delete("/v1/session", headers=headers).status_code == 204


TRACE_HEADERS = (
    "content-type,traceparent,tracestate,baggage,sentry-trace,x-datadog-trace-id,x-request-id,cache-control,pragma,"
    "expires,if-none-match,user-agent,x-csrf-token,x-client-info,ngrok-skip-browser-warning,x-openreplay-session-token,"
    "adrum,sw8,x-dtpc,x-instana-t,x-posthog-session-id,x-newrelic-id,x-ms-request-id,x-correlation-id,ot-tracer-traceid"
)


def test_a_page_with_tracing_may_call_and_its_trace_headers_do_not_reach_fal(
    production: Stack, page: httpx.Client
) -> None:
    assert preflight(page, EVERYWHERE, headers=TRACE_HEADERS).status_code == 200
    sent = dict.fromkeys(TRACE_HEADERS.split(",")[1:], "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    with production.client(headers={"origin": EVERYWHERE, **sent}) as traced:
        body = {"image_url": PIXEL, "prompt": "?"}
        assert traced.post("/fal/run/fal-ai/llava-next", json=body).status_code == 200
    (request,) = production.sandbox.requests()
    assert not {name for name, _ in request["headers"]} & set(sent) - {"cache-control", "pragma", "user-agent"}
    assert not any("0af7651916cd43dd" in value for _, value in request["headers"])


def test_a_refused_preflight_is_logged_with_what_it_asked_for_and_counted(
    production: Stack, page: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "proxy.access")
    before = refusals(page)
    preflight(page, "https://evil.example", method="DELETE", headers="x-" + "y" * 5000)
    assert refusals(page) == before + 1
    wait_until(lambda: any("wanted_method" in getattr(one, "log_fields", {}) for one in caplog.records), "no line")
    (facts,) = [one.log_fields for one in caplog.records if "wanted_method" in getattr(one, "log_fields", {})]  # type: ignore[attr-defined]
    assert facts["origin"] == "https://evil.example" and facts["wanted_method"] == "DELETE"
    assert len(facts["wanted_headers"]) == 200 and facts["error_type"] == "origin_not_allowed"
    assert "PROXY_ALLOWED_ORIGINS" in facts["allowed_by"]


def reports(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """The log's entries about pages that were refused for their origin."""
    return [one.log_fields for one in caplog.records if one.message == "page refused for its origin"]  # type: ignore[attr-defined]


def origins_refused(page: httpx.Client, check: str) -> float:
    name = f'fal_proxy_origins_refused_total{{check="{check}"}}'
    lines = [line for line in page.get("/metrics").text.splitlines() if line.startswith(name)]
    return float(lines[0].split()[-1]) if lines else 0.0


@pytest.mark.parametrize("check", ["preflight", "cookie", "guest"])
def test_the_log_says_of_a_refused_page_which_are_allowed_and_what_to_change(
    production: Stack, page: httpx.Client, caplog: pytest.LogCaptureFixture, check: str
) -> None:
    caplog.set_level(logging.WARNING, "proxy.http.refused_origins")
    origin, before = f"https://{check}.example", origins_refused(page, check)

    def ask() -> httpx.Response:
        if check == "preflight":
            return preflight(page, origin)
        if check == "cookie":
            return page.get("/v1/session", headers={"origin": origin, "cookie": production.cookie()})
        return page.post("/v1/sessions/guest", headers={"origin": origin})

    assert {ask().status_code for _ in range(3)} == {403}
    (facts,) = reports(caplog)
    assert (facts["origin"], facts["check"]) == (origin, check)
    assert production.other_origin in facts["allowed"]
    assert (EVERYWHERE in facts["allowed"]) is (check != "guest")
    # A cookie counts for its own tenant only.
    assert ("https://app.globex.example" in facts["allowed"]) is (check == "preflight")
    settings = {"preflight": "PROXY_ALLOWED_ORIGINS", "cookie": "tenant acme", "guest": "guests.enabled"}
    assert settings[check] in facts["setting"] and "allowed_origins" in facts["setting"]
    assert origins_refused(page, check) == before + 3


def test_a_page_without_an_origin_is_logged_as_such(
    production: Stack, page: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "proxy.http.refused_origins")
    page.get("/v1/session", headers={"cookie": production.cookie(), "sec-fetch-site": "cross-site"})
    assert [facts["origin"] for facts in reports(caplog)] == ["none (sec-fetch-site: cross-site)"]


def test_an_allowed_page_with_a_wrong_header_is_not_logged_as_refused(
    production: Stack, page: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "proxy.http.refused_origins")
    before = origins_refused(page, "preflight")
    assert preflight(page, EVERYWHERE, headers="x-anything").status_code == 403
    assert reports(caplog) == [] and origins_refused(page, "preflight") == before


def test_foreign_origins_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "proxy.http.refused_origins")
    metrics = Metrics()
    origins = RefusedOrigins(metrics)
    allowed = {f"https://{number:03}.example/" + "a" * 300 for number in range(100)}
    for number in range(3 * MOST_ORIGINS):
        refusal = OriginRefusal("preflight", f"https://{number}.example" + "x" * 9000, lambda: allowed, "a setting")
        origins.report(OriginNotAllowed("no", refusal))
    assert len(reports(caplog)) == MOST_ORIGINS
    assert all(len(facts["origin"]) == 200 and facts["allowed_in_all"] == 100 for facts in reports(caplog))
    assert all(len(facts["allowed"]) == 20 and len(facts["allowed"][0]) == 200 for facts in reports(caplog))
    assert b'fal_proxy_origins_refused_total{check="preflight"} 192.0' in asyncio.run(metrics.render())


def test_an_origin_is_logged_again_after_a_while(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "proxy.http.refused_origins")
    now = 0.0
    origins = RefusedOrigins(Metrics(), timer=lambda: now)
    for seconds, lines in ((0, 1), (SECONDS - 1, 1), (2, 2)):
        now += seconds
        origins.report(OriginNotAllowed("no", OriginRefusal("guest", "https://a.example", tuple, "a setting")))
        assert len(reports(caplog)) == lines


def test_allowed_origins_are_listed_for_a_line_of_the_log_only() -> None:
    asked = 0

    def list_allowed() -> tuple[str, ...]:
        nonlocal asked
        asked += 1
        return ()

    origins = RefusedOrigins(Metrics())
    for _ in range(3):
        origins.report(OriginNotAllowed("no", OriginRefusal("guest", "https://a.example", list_allowed, "a setting")))
    assert asked == 1


def refusals(page: httpx.Client) -> float:
    name = 'fal_proxy_refusals_total{error_type="origin_not_allowed"}'
    lines = [line for line in page.get("/metrics").text.splitlines() if line.startswith(name)]
    return float(lines[0].split()[-1]) if lines else 0.0


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/v1/jobs", "GET, HEAD, POST"),
        ("POST", "/v1/jobs/some-id", "DELETE, GET, HEAD"),
        ("PUT", "/v1/session", "DELETE, GET, HEAD"),
        ("GET", "/v1/sessions", "DELETE, POST"),
    ],
)
def test_an_unknown_method_is_answered_with_the_known_ones(
    page: httpx.Client, method: str, path: str, allow: str
) -> None:
    answer = page.request(method, path)
    assert (answer.status_code, answer.json()["error_type"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == allow
