"""Jobs of an endpoint in a namespace, by the names that fal's clients give its app."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.support.limited import HOSTS, NEXT, PROTOCOL, Client, limited_proxy, plan
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack

APP = "workflows/acme/describe"
#: With a sub-path, which is no part of the app's name.
ENDPOINT = f"{APP}/fast"
#: As JavaScript and Python, Java and Dart, and Swift call the app.
NAMES = [APP, "acme/describe", "workflows/acme"]


class RenamedFal(httpx.AsyncBaseTransport):
    """The sandbox, whose one endpoint has another name. Jobs are known by the whole name of its app only."""

    def __init__(self) -> None:
        self._sandbox = httpx.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        target = request.extensions["target"].decode()
        renamed = target.replace(f"/{ENDPOINT}", f"/{NEXT}").replace(f"/{APP}/requests/", f"/{NEXT}/requests/")
        request.extensions["target"] = renamed.encode()
        return await self._sandbox.handle_async_request(request)

    async def aclose(self) -> None:
        await self._sandbox.aclose()


@pytest.fixture(scope="module")
def proxy(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("namespaces")
    (folder / "input.json").write_text('{"type": "object"}')
    with limited_proxy(
        shared_sandbox,
        folder,
        {"acme": plan(endpoints=[ENDPOINT, NEXT])},
        endpoints=[{"id": ENDPOINT, "schema": "input.json"}],
        transport=RenamedFal(),
    ) as stack:
        yield stack


@pytest.mark.parametrize("surface", [HOSTS, PROTOCOL])
@pytest.mark.parametrize("name", NAMES)
def test_a_job_is_found_by_each_name_of_its_app(proxy: Stack, surface: str, name: str) -> None:
    with Client(proxy, proxy.token(), surface) as client:
        job = client.submitted("What is this? [[pace hold=IN_PROGRESS]]", ENDPOINT)
        assert client.status(job, name).json()["status"] in ("IN_QUEUE", "IN_PROGRESS")
        proxy.sandbox.move_job(job, "finish")
        path = f"queue/{name}/requests/{job}"
        events = client.call("GET", f"{path}/status/stream").text
        assert '"status":"COMPLETED"' in events
        assert "output" in client.result(job, name).json()
        cancelled = client.call("PUT", f"{path}/cancel")
        assert (cancelled.status_code, cancelled.json()) == (400, {"status": "ALREADY_COMPLETED"})


@pytest.mark.parametrize(
    "name", ["acme/other", "workflows/other", "describe/fast", "comfy/acme", "comfy/acme/describe", NEXT]
)
def test_a_job_is_found_by_no_other_name(proxy: Stack, name: str) -> None:
    with Client(proxy, proxy.token()) as client:
        job = client.submitted(endpoint=ENDPOINT)
        assert client.status(job, name).status_code == (404 if name == NEXT else 403)
