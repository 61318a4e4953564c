"""A real process with issuers: it trusts what `SSL_CERT_FILE` has, and reads files of keys again on SIGHUP."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.auth.providers import AUTH0, KEYCLOAK
from tests.server.commands import PLAINLY, SERVABLE, Server, serving
from tests.support.issuer import key_host, private_key, public_jwk, sign
from tests.support.limited import NEXT, plan
from tests.support.waiting import wait_until


def status_of(server: Server, token: str) -> int:
    headers = {"authorization": f"Bearer {token}"}
    return httpx.get(f"{server.url}/v1/session", headers=headers, **PLAINLY).status_code


def write_keys(folder: Path, name: str) -> None:
    (folder / "keys.json").write_text(json.dumps({"keys": [public_jwk(private_key(name), kid=name)]}))


def signed_by(name: str) -> str:
    now = int(time.time())
    claims: dict[str, Any] = {"iss": KEYCLOAK.issuer, "aud": "fal-proxy", "sub": "alice", "iat": now, "exp": now + 600}
    return sign({"alg": "RS256", "typ": "JWT", "kid": name}, claims, private_key(name))


def test_keys_come_from_a_server_of_a_private_authority_and_from_a_file(tmp_path: Path) -> None:
    write_keys(tmp_path, "old")
    with key_host(tmp_path) as (host, _):
        local = {"issuer": KEYCLOAK.issuer, "audience": "fal-proxy", "jwks_file": "keys.json"}
        plans = {"free": plan(endpoints=[NEXT]), "paid": plan()}
        tenant = {"id": "acme", "plan": "free", "identity": [AUTH0.identity(host), local]}
        (tmp_path / "plans.yaml").write_text(yaml.safe_dump({"plans": plans, "tenants": [tenant]}))
        environ = {
            **SERVABLE,
            "PROXY_CONFIG": "plans.yaml",
            "PROXY_DATABASE_URL": f"sqlite:///{tmp_path / 'proxy.db'}",
            "PROXY_ISSUER_NETWORKS": "127.0.0.0/8,::1",
            "SSL_CERT_FILE": str(tmp_path / "ca.pem"),
        }
        with serving("serve", environ=environ, folder=tmp_path) as server:
            assert status_of(server, AUTH0.token(time.time())) == 200
            assert (status_of(server, signed_by("old")), status_of(server, signed_by("new"))) == (200, 401)
            write_keys(tmp_path, "new")
            server.process.send_signal(signal.SIGHUP)
            wait_until(lambda: status_of(server, signed_by("new")) == 200, "the new keys do not count")
            assert (status_of(server, signed_by("old")), status_of(server, AUTH0.token(time.time()))) == (401, 200)
