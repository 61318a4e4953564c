"""Requests made from `/openapi.json`, lawful and not: every answer is one that the description of its route lists."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from proxy.routes.openapi import PATH, describe_routes
from tests.fuzz.json import TRUSTING
from tests.support.limited import ADMIN_TOKEN, NEXT, limited_proxy, per, plan
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack

PAGE = "https://app.acme.example"
PLANS = {"acme": plan(quotas=[per("subject", "requests", 10**6)]), "spare": plan()}
TIERS = [{"proof": "pow", "plan": "acme"}, {"proof": "none", "plan": "spare"}]
TENANTS = {"acme": {"allowed_origins": [PAGE], "guests": {"enabled": True, "tiers": TIERS}}}
ENVIRON = {"PROXY_PLAYGROUND": "on"}
#: A request gets its credential from the test; a header of the transport's own would be sent twice.
NOT_DRAWN = {"authorization", "x-fal-proxy-session", "cookie", "origin", "host", "content-length", "transfer-encoding"}
CHECKS = [status_code_conformance, content_type_conformance, response_headers_conformance]
EXAMPLES = 20


@dataclass
class Bench:
    """A proxy in which there is something of each kind, and its description."""

    stack: Stack
    schema: Any
    names: dict[str, str]
    addresses: Iterator[int]

    def headers(self, path: str) -> dict[str, str]:
        """A credential that may call the route, from an address that no request came from before."""
        number = next(self.addresses)
        address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
        if path.startswith("/v1/admin"):
            token = ADMIN_TOKEN
        elif path in ("/v1/sessions", "/v1/estimate", "/v1/statements/{month}"):
            token = self.stack.tenant_key()
        else:
            token = self.stack.token(f"subject-{number}" if path == "/v1/session" else "alice")
        return {"authorization": f"Bearer {token}", "x-forwarded-for": address, "origin": PAGE}


@pytest.fixture(scope="module")
def bench(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("description")
    with (
        limited_proxy(shared_sandbox, folder, PLANS, tenants=TENANTS, environ=ENVIRON, server=TRUSTING) as stack,
        stack.client() as http,
    ):
        shared_sandbox.begin()
        job = http.post(
            "/v1/jobs", json={"endpoint": NEXT, "input": {"prompt": "?", "image_url": "https://a.example/b"}}
        )
        assert job.status_code == 202, job.text
        config = SchemathesisConfig.from_dict({})
        schema = schemathesis.openapi.from_dict(http.get(PATH).json(), config=config)
        names = {
            "tenant": "spare",
            "id": job.json()["id"],
            "job": job.json()["id"],
            "subject": "alice",
            "endpoint": NEXT,
            "month": "2026-01",
        }
        yield Bench(stack, schema, names, itertools.count())


def operations() -> list[tuple[str, str]]:
    return [
        (method.upper(), path)
        for path, item in json.loads(describe_routes("http://localhost"))["paths"].items()
        for method in item
        if method in ("get", "post", "put", "delete", "patch")
    ]


@pytest.mark.parametrize(("method", "path"), operations(), ids=lambda one: one)
def test_every_answer_is_one_that_is_described(bench: Bench, method: str, path: str) -> None:
    lawful, unlawful = (bench.schema[path][method].as_strategy(generation_mode=mode) for mode in GenerationMode)

    @seed(20_261_126)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(lawful | unlawful, st.booleans())
    def send(case: Case, is_known: bool) -> None:
        case.headers = {name: value for name, value in (case.headers or {}).items() if name.lower() not in NOT_DRAWN}
        case.cookies = {}
        if is_known:
            case.path_parameters |= {name: bench.names[name] for name in case.path_parameters if name in bench.names}
        bench.stack.clock.advance(61)
        answer = case.call(base_url=bench.stack.url, headers=bench.headers(path), timeout=20)
        # OpenAPI 3.1 describes a stream of events as a text, and schemathesis reads it as objects.
        is_stream = path.endswith("/events") and answer.status_code == 200
        case.validate_response(answer, checks=CHECKS if is_stream else [*CHECKS, response_schema_conformance])

    send()
