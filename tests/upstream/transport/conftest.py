"""The transport under test, on both loops."""

from __future__ import annotations

import gc
import ssl
from collections.abc import AsyncIterator

import httpx
import pytest

from proxy.upstream.transport import EngineTransport


@pytest.fixture(params=[{"use_uvloop": False}, {"use_uvloop": True}], ids=["asyncio", "uvloop"])
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
