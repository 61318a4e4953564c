"""The transport under test, on both loops."""

from __future__ import annotations

import gc
import ssl
from collections.abc import AsyncIterator

import httpx
import pytest

from proxy.upstream.transport import EngineTransport

#: What serves is uvloop, so the fast loop has it alone.
LOOPS = [
    pytest.param({"use_uvloop": False}, id="asyncio", marks=pytest.mark.slow),
    pytest.param({"use_uvloop": True}, id="uvloop"),
]


@pytest.fixture(params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", request.param


@pytest.fixture(scope="session")
def certificates() -> ssl.SSLContext:
    """The transport's own default, read from disk once."""
    return httpx.create_ssl_context()


@pytest.fixture
async def transport(certificates: ssl.SSLContext) -> AsyncIterator[EngineTransport]:
    transport = EngineTransport(ssl_context=certificates)
    yield transport
    await transport.aclose()
    gc.collect(1)  # what was not closed complains now, and a complaint is an error
