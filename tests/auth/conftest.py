"""A proxy that accepts the tokens of every provider, each for a tenant of its own."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.auth.providers import PROVIDERS
from tests.support.issuer import KeyHost, key_host
from tests.support.limited import ADMIN_TOKEN, NEXT, plan
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack, proxy_in_front_of

#: Where the tests' own key sets are.
LOOPBACK = {"PROXY_ISSUER_NETWORKS": "127.0.0.0/8,::1"}
PAGE = "https://app.acme.example"


@pytest.fixture(scope="session")
def trusted_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[KeyHost, ssl.SSLContext]]:
    with key_host(tmp_path_factory.mktemp("issuers")) as found:
        yield found


@pytest.fixture
def host(trusted_host: tuple[KeyHost, ssl.SSLContext]) -> KeyHost:
    return trusted_host[0]


@contextlib.contextmanager
def accepting(
    sandbox: SandboxControl,
    folder: Path,
    trust: ssl.SSLContext,
    tenants: Mapping[str, list[dict[str, Any]]],
    more: Mapping[str, str] | None = None,
) -> Iterator[Stack]:
    """A proxy whose tenants accept these issuers."""
    file = {
        "plans": {"free": plan(endpoints=[NEXT]), "paid": plan(session_ttl_seconds=900)},
        "tenants": [
            {"id": name, "plan": "free", "allowed_origins": [PAGE], "identity": identity}
            for name, identity in tenants.items()
        ],
    }
    (folder / "plans.yaml").write_text(yaml.safe_dump(file))
    own = {"PROXY_CONFIG": str(folder / "plans.yaml"), "PROXY_ADMIN_TOKEN": ADMIN_TOKEN}
    environ = {**own, **LOOPBACK, **(more or {})}
    with proxy_in_front_of(sandbox, folder, environ=environ, issuer_tls=trust) as stack:
        yield stack


@pytest.fixture(scope="session")
def identity_stack(
    shared_sandbox: SandboxControl,
    trusted_host: tuple[KeyHost, ssl.SSLContext],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Stack]:
    host, trust = trusted_host
    tenants = {name: [provider.identity(host)] for name, provider in PROVIDERS.items()}
    with accepting(shared_sandbox, tmp_path_factory.mktemp("identity"), trust, tenants) as stack:
        yield stack


@pytest.fixture
def proxy(identity_stack: Stack, sandbox: SandboxControl) -> Stack:
    return identity_stack
