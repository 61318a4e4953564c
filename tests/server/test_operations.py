"""Liveness, readiness and metrics for operators; and what every answer has, errors included."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import create_engine, text

from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack, proxy_in_front_of


@pytest.fixture
def anonymous(production: Stack) -> Iterator[httpx.Client]:
    with production.client("") as client:
        yield client


def test_alive_and_ready_without_a_session(anonymous: httpx.Client) -> None:
    assert anonymous.get("/livez").json() == {"status": "ok"}
    assert anonymous.get("/readyz").json() == {"status": "ready", "upstream": {"closed": [], "last": {}}}


def test_not_ready_but_alive_when_the_database_is_not_of_this_version(sandbox: SandboxControl, tmp_path: Path) -> None:
    with proxy_in_front_of(sandbox, tmp_path) as own, own.client("") as anonymous:
        engine = create_engine(own.settings.stores.database_url.reveal())
        with engine.begin() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '0000'"))
        engine.dispose()
        answer = anonymous.get("/readyz")
        assert (answer.status_code, answer.json()["error_type"]) == (503, "store_unavailable")
        assert "fal-proxy migrate" in answer.json()["detail"] and int(answer.headers["retry-after"]) >= 1
        assert anonymous.get("/livez").status_code == 200


def test_a_database_that_is_gone_means_503_and_no_free_pass(sandbox: SandboxControl, tmp_path: Path) -> None:
    with proxy_in_front_of(sandbox, tmp_path) as own, own.client() as alice:
        assert alice.get("/v1/session").status_code == 200
        for path in tmp_path.glob("proxy.db*"):
            path.write_bytes(b"no database any more " * 1000)
        own.clock.advance(5)
        answers = [alice.get("/v1/session"), alice.post("/fal/run/fal-ai/llava-next", json={}), alice.get("/readyz")]
        for answer in answers:
            assert (answer.status_code, answer.json()["error_type"]) == (503, "store_unavailable")
            assert answer.json()["retry_after"] >= 1 and str(tmp_path) not in answer.text
        assert sandbox.requests() == []


def samples_of(anonymous: httpx.Client) -> dict[tuple[str, frozenset[str]], float]:
    """The samples by their name and the values of their labels."""
    answer = anonymous.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    samples = [sample for family in text_string_to_metric_families(answer.text) for sample in family.samples]
    return {(sample.name, frozenset(sample.labels.values())): sample.value for sample in samples}


def test_metrics_count_requests_by_route_and_refusals_by_code(production: Stack, anonymous: httpx.Client) -> None:
    before = samples_of(anonymous)
    for _ in range(3):
        anonymous.get("/v1/session")
    token = production.token("somebody@example.com")
    anonymous.get(f"/s/{token}/api/fal/proxy")
    after = samples_of(anonymous)

    def growth(name: str, *labels: str) -> float:
        return after[name, frozenset(labels)] - before.get((name, frozenset(labels)), 0)

    assert growth("fal_proxy_requests_total", "/v1/session", "401") == 3
    assert growth("fal_proxy_refusals_total", "unauthenticated") == 3
    assert growth("fal_proxy_request_seconds_count", "/v1/session") == 3
    assert growth("fal_proxy_requests_total", "/s/{session}/api/fal/proxy", "400") == 1
    shown = anonymous.get("/metrics").text
    assert token not in shown and "somebody" not in shown


@pytest.mark.parametrize("path", ["/nowhere", "/v1", "/v1/session/", "/api/fal/proxy/", "/fal", "/s/x", "/%2e%2e/x"])
def test_an_unknown_address_is_404_and_never_a_redirect(anonymous: httpx.Client, path: str) -> None:
    answer = anonymous.get(path)
    body = answer.json()
    assert (answer.status_code, body["error_type"], body["status"]) == (404, "not_found", "NOT_FOUND")
    assert body["detail"] == body["message"] and body["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/sessions", {"DELETE", "POST"}),
        ("PUT", "/v1/endpoints", {"GET", "HEAD"}),
        ("DELETE", "/livez", {"GET", "HEAD"}),
        ("GET", "/uploads/slot", {"PUT"}),
    ],
)
def test_a_wrong_method_is_405_and_names_the_right_ones(
    anonymous: httpx.Client, method: str, path: str, allowed: set[str]
) -> None:
    answer = anonymous.request(method, path)
    assert (answer.status_code, answer.json()["error_type"]) == (405, "method_not_allowed")
    assert set(answer.headers["allow"].split(", ")) == allowed


@pytest.mark.parametrize("path", ["/api/fal/proxy", "/fal/run/fal-ai/llava-next"])
@pytest.mark.parametrize("method", ["DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"])
def test_the_surfaces_know_the_methods_of_the_clients_only(production: Stack, path: str, method: str) -> None:
    with production.client() as alice:
        answer = alice.request(method, path)
    assert (answer.status_code, answer.json()["error_type"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, POST, PUT"


@pytest.mark.parametrize("given", ["12345678", "a.request_ID-7", "x" * 128])
def test_a_well_formed_request_id_is_kept(anonymous: httpx.Client, given: str) -> None:
    assert anonymous.get("/livez", headers={"x-request-id": given}).headers["x-request-id"] == given
    assert anonymous.get("/nowhere", headers={"x-request-id": given}).json()["request_id"] == given


@pytest.mark.parametrize("given", ["", "short", "x" * 129, "with space", "semi;colon", "<script>", "é" * 8, None])
def test_a_malformed_request_id_is_replaced(anonymous: httpx.Client, given: str | None) -> None:
    headers = {} if given is None else {"x-request-id": given.encode()}
    kept = anonymous.get("/livez", headers=headers).headers["x-request-id"]  # type: ignore[arg-type]
    assert re.fullmatch(r"[0-9a-f]{16}", kept)


# What a caller may call


def test_the_endpoints_of_a_caller(production: Stack) -> None:
    with production.client() as alice, production.client(production.token(tenant="small")) as small:
        found = {one["id"]: one["title"] for one in alice.get("/v1/endpoints").json()["endpoints"]}
        assert list(found) == ["fal-ai/llava-llama3-8b-v11", "fal-ai/llava-next", "fal-ai/llavav15-13b"]
        assert "34B" in found["fal-ai/llava-next"]
        assert [one["id"] for one in small.get("/v1/endpoints").json()["endpoints"]] == ["fal-ai/llava-next"]


def test_the_schema_of_an_endpoint(production: Stack) -> None:
    with production.client() as alice:
        shown = alice.get("/v1/endpoints/fal-ai/llava-next").json()
    assert set(shown) == {"id", "title", "input_schema", "output_schema"}
    assert shown["input_schema"]["required"] == ["image_url", "prompt"]
    assert shown["output_schema"]["required"] == ["output"]


@pytest.mark.parametrize("endpoint", ["fal-ai/llavav15-13b", "fal-ai/flux/dev", "fal-ai", "fal-ai/llava-next/", "../x"])
def test_an_endpoint_out_of_scope_is_answered_as_an_unknown_one(production: Stack, endpoint: str) -> None:
    with production.client(production.token(tenant="small")) as small:
        answer = small.get(f"/v1/endpoints/{endpoint}")
    assert (answer.status_code, answer.json()["error_type"]) == (404, "not_found")


def test_endpoints_need_a_session(anonymous: httpx.Client) -> None:
    for path in ("/v1/endpoints", "/v1/endpoints/fal-ai/llava-next"):
        assert anonymous.get(path).status_code == 401
