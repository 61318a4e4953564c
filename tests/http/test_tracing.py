"""Traces, as a real collector gets them: a span for each call and each request to fal, and no secret in any."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.settings import SettingsError, read
from tests.support.collector import CLIENT, SERVER, Collector, collecting
from tests.support.limited import NEXT, asking
from tests.support.sandbox import SandboxControl
from tests.support.secrets import SECRET
from tests.support.stack import Stack, proxy_in_front_of
from tests.support.waiting import wait_until

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
RUN = "POST /fal/{path:path}"


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    # The SDK's own variable: how long it gathers spans.
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    with collecting() as found:
        yield found


@pytest.fixture
def proxy(collector: Collector, sandbox: SandboxControl, tmp_path: Path) -> Iterator[Stack]:
    with proxy_in_front_of(sandbox, tmp_path, environ={"PROXY_OTLP_ENDPOINT": collector.url}) as stack:
        yield stack


def test_a_run_is_one_span_and_its_request_to_fal_another(proxy: Stack, collector: Collector) -> None:
    with proxy.client() as client:
        client.post(f"/fal/run/{NEXT}", json=asking("What?")).raise_for_status()
    (call,) = collector.wait_for(RUN)
    (request,) = collector.wait_for("POST 127.0.0.1")
    assert (call.kind, call.parent, call.is_failed) == (SERVER, "", False)
    assert (request.kind, request.parent, request.trace) == (CLIENT, call.id, call.trace)
    assert call.attributes == {
        "http.request.method": "POST",
        "http.route": "/fal/{path:path}",
        "http.response.status_code": 200,
        "fal_proxy.tenant": "acme",
        "fal_proxy.kind": "run",
        "gen_ai.operation.name": "generate_content",
        "gen_ai.provider.name": "fal",
        "gen_ai.request.model": NEXT,
    }
    assert request.attributes["http.response.status_code"] == 200
    assert call.resource["service.name"] == "fal-proxy" and call.resource["service.version"]


def test_a_stream_from_fal_is_a_span_until_its_end(proxy: Stack, collector: Collector) -> None:
    with proxy.client() as client:
        client.post(f"/fal/run/{NEXT}/stream", json=asking("What?")).raise_for_status()
    (call,) = collector.wait_for(RUN)
    (request,) = collector.wait_for("POST 127.0.0.1")
    assert call.attributes["fal_proxy.kind"] == "stream" and request.parent == call.id


def test_a_job_is_named_in_the_spans_of_its_calls(proxy: Stack, collector: Collector) -> None:
    with proxy.client() as client:
        job = client.post("/v1/jobs", json={"endpoint": NEXT, "input": asking("What?")}).json()["id"]
        wait_until(lambda: client.get(f"/v1/jobs/{job}").json()["status"] == "COMPLETED", "the job does not end")
        client.get(f"/v1/jobs/{job}/result").raise_for_status()
    (result,) = collector.wait_for("GET /v1/jobs/{id}/result")
    assert result.attributes["gen_ai.response.id"] == job and "gen_ai.request.model" not in result.attributes


def test_a_backend_continues_its_own_trace_and_a_page_begins_one(proxy: Stack, collector: Collector) -> None:
    key = proxy.tenant_key()
    with proxy.client(key) as backend:
        # From now on this process knows the key.
        backend.get("/v1/session").raise_for_status()
    for credential in (key, proxy.token(), "fpk_0123456789abcdef_forged", ""):
        with proxy.client(credential, headers=PARENT) as client:
            client.get("/v1/endpoints")
    spans = collector.wait_for("GET /v1/endpoints", 4)
    assert [(span.trace, span.parent) for span in spans if span.trace == TRACE] == [(TRACE, SPAN)]
    assert len({span.trace for span in spans}) == 4


@pytest.mark.parametrize("parent", ["", "x", f"00-{'0' * 32}-{SPAN}-01", "00-" + "a" * 4000])
def test_a_malformed_parent_begins_a_trace(proxy: Stack, collector: Collector, parent: str) -> None:
    with proxy.client(proxy.tenant_key(), headers={"traceparent": parent}) as client:
        client.get("/v1/endpoints").raise_for_status()
    assert collector.wait_for("GET /v1/endpoints")[0].parent == ""


def test_a_failure_is_marked_with_its_code(proxy: Stack, collector: Collector) -> None:
    proxy.sandbox.fault(fault="drop", when="before", times=5)
    with proxy.client() as client:
        answer = client.post(f"/fal/run/{NEXT}", json=asking("What?"))
    (call,) = collector.wait_for(RUN)
    assert call.is_failed and call.attributes["http.response.status_code"] == answer.status_code >= 500
    assert call.attributes["error.type"] == answer.json()["error_type"]
    request = collector.wait_for("POST 127.0.0.1")[0]
    assert request.is_failed and request.attributes["error.type"]


def test_no_span_holds_a_secret_or_what_was_asked(proxy: Stack, collector: Collector) -> None:
    token, key = proxy.token(), proxy.tenant_key()
    with proxy.client(token) as client:
        client.post(f"/fal/run/{NEXT}", json=asking("a-most-private-question")).raise_for_status()
        client.get(f"/s/{token}/api/fal/proxy")
        begun = client.post(
            "/fal/rest/storage/upload/initiate", json={"content_type": "image/png", "file_name": "private-name.png"}
        ).json()
        client.put(begun["upload_url"], content=b"\x89PNG\r\n\x1a\n" + b"x" * 50, headers={"content-type": "image/png"})
    with proxy.client(key) as backend:
        backend.post("/v1/sessions", json={"subject": "private-person"}).raise_for_status()
    collector.wait_for("POST /v1/sessions")
    collector.wait_for("PUT /uploads/{slot}")
    whole = b"".join(collector.bodies)
    slot = begun["upload_url"].rpartition("/")[2]
    for secret in (token, key, SECRET, slot, "a-most-private-question", "private-name", "private-person", "alice"):
        assert secret.encode() not in whole, secret


def test_no_call_waits_for_the_collector(
    collector: Collector, sandbox: SandboxControl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The SDK's own variable: how long it waits for an answer.
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "3600")
    with proxy_in_front_of(sandbox, tmp_path, environ={"PROXY_OTLP_ENDPOINT": collector.url}) as stack:
        with collector.silent(), stack.client() as client:
            client.post(f"/fal/run/{NEXT}", json=asking("What?")).raise_for_status()
            wait_until(lambda: bool(collector.bodies), "the collector was not asked")
            client.post(f"/fal/run/{NEXT}", json=asking("What?")).raise_for_status()
            assert not collector.spans
        collector.wait_for(RUN, 2)


@pytest.mark.parametrize(
    "text", ["collector:4318", "ftp://collector", "http://", "http://u:p@collector", "http://c?x=1"]
)
def test_a_wrong_address_is_a_problem_of_the_settings(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read({"FAL_KEY": "id:secret", "PROXY_SESSION_SECRETS": "x" * 32, "PROXY_OTLP_ENDPOINT": text})
    assert "PROXY_OTLP_ENDPOINT: must be the address of a collector" in str(caught.value.problems)


def test_without_an_address_nothing_of_opentelemetry_is_imported() -> None:
    code = """
import sys
from proxy.app import create_app
from proxy.settings import read
create_app(read({"FAL_KEY": "id:secret", "PROXY_SESSION_SECRETS": "x" * 32}))
print(*(name for name in sys.modules if name.startswith("opentelemetry")))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
