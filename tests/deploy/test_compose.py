"""`compose.yaml` is a valid compose file, and each service's command works when a test runs it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest
import yaml

from proxy.settings import read
from tests.deploy.containers import ROOT
from tests.server.commands import PLAINLY, PROXY, Server, serving
from tests.support.postgres import Postgres, program
from tests.support.programs import Program
from tests.support.redis import Redis
from tests.support.sandbox import SandboxControl
from tests.support.secrets import SECRET
from tests.support.servers import free_port
from tests.support.stack import sandbox_environ
from tests.support.waiting import wait_until

COMPOSE = ROOT / "compose.yaml"
SCHEMA = ROOT / ".tools" / "crds" / "compose-spec.json"
GIVEN = {"FAL_KEY": "id:secret", "PROXY_SESSION_SECRETS": SECRET, "POSTGRES_PASSWORD": "0123456789abcdef"}
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


class Missing(Exception):
    """A variable that must be set is not."""


def interpolate(node: Any, given: Mapping[str, str]) -> Any:
    """Replace variables as Compose does: `${NAME:-default}` and `${NAME:?what to do}`."""
    if isinstance(node, dict):
        return {name: interpolate(one, given) for name, one in node.items()}
    if isinstance(node, list):
        return [interpolate(one, given) for one in node]

    def value(found: re.Match[str]) -> str:
        name, kind, rest = found.groups()
        if given.get(name):
            return given[name]
        if kind == "?":
            raise Missing(f"{name}: {rest}")
        return rest if kind == "-" else ""

    return VARIABLE.sub(value, node) if isinstance(node, str) else node


def services(**given: str) -> dict[str, Any]:
    found: dict[str, Any] = interpolate(yaml.safe_load(COMPOSE.read_text()), GIVEN | given)["services"]
    return found


def validate(document: Any) -> None:
    jsonschema_rs.Draft7Validator(json.loads(SCHEMA.read_text())).validate(document)


@pytest.mark.tools
class TestBySchema:
    def test_the_file_is_a_valid_compose_file(self) -> None:
        validate(yaml.safe_load(COMPOSE.read_text()))

    def test_a_wrong_name_in_it_is_found(self) -> None:
        wrong = yaml.safe_load(COMPOSE.read_text())
        wrong["services"]["proxy"]["health"] = wrong["services"]["proxy"].pop("healthcheck")
        with pytest.raises(jsonschema_rs.ValidationError, match="health"):
            validate(wrong)


@pytest.mark.parametrize("name", GIVEN)
def test_without_a_secret_it_does_not_start(name: str) -> None:
    with pytest.raises(Missing, match=f"^{name}: "):
        services(**{name: ""})


def test_each_service_waits_for_its_dependencies_and_has_a_health_check() -> None:
    found = services()
    waits = {
        name: {other: how["condition"] for other, how in one.get("depends_on", {}).items()}
        for name, one in found.items()
    }
    assert waits == {
        "proxy": {"postgres": "service_healthy", "redis": "service_healthy"},
        "postgres": {},
        "redis": {},
    }
    assert all("healthcheck" in one for one in found.values())
    kept = {volume.split(":")[0] for one in found.values() for volume in one.get("volumes", [])}
    assert kept == set(yaml.safe_load(COMPOSE.read_text())["volumes"]) == {"database", "state"}
    # The drain is over before the container is killed.
    settings = read({**found["proxy"]["environment"]})
    assert int(found["proxy"]["stop_grace_period"].removesuffix("s")) > settings.server.drain_seconds
    # The port of operators is not published.
    assert [port.rpartition(":")[2] for port in found["proxy"]["ports"]] == ["8787"]
    assert settings.server.ops_port == 9090 and found["proxy"]["ports"][0].startswith("127.0.0.1:")


class ComposeRedis(Redis):
    """Redis by the command of its service, on a free port."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        command = [*services()["redis"]["command"], "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
        Program.__init__(self, command, port, folder / "log")


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposeRedis]:
    server = ComposeRedis(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


def here(environment: Mapping[str, str], postgres: Postgres, database: str, redis: Redis) -> dict[str, str]:
    """A service's environment, where names of other services lead to the servers of the tests."""
    return dict(environment) | {
        "PROXY_DATABASE_URL": postgres.url(database),
        "PROXY_REDIS_URL": environment["PROXY_REDIS_URL"].replace("redis:6379", f"127.0.0.1:{redis.port}"),
    }


def check(service: str, **replaced: str) -> int:
    """The exit code of a service's health check; its program and ports are those of this machine."""
    test = services()[service]["healthcheck"]["test"]
    assert test[0] == "CMD"
    command = [replaced.get(word, word) for word in test[1:]]
    if "port" in replaced:
        command = [re.sub(r"127\.0\.0\.1:\d+", f"127.0.0.1:{replaced['port']}", word) for word in command]
    return subprocess.run(command, capture_output=True, timeout=60).returncode


@pytest.mark.tools
@pytest.mark.slow
class TestByHand:
    @contextmanager
    def served(self, environ: dict[str, str], folder: Path, sandbox: SandboxControl) -> Iterator[Server]:
        """The proxy, by the image's command; the image listens on all addresses itself."""
        with serving("serve", environ={**environ, **sandbox_environ(sandbox.url)}, folder=folder) as server:
            yield server

    def test_the_services_work_together(
        self, postgres: Postgres, redis: ComposeRedis, sandbox: SandboxControl, tmp_path: Path
    ) -> None:
        found, database = services(), postgres.create_database()
        environ = here(found["proxy"]["environment"], postgres, database, redis)
        environ |= {"PROXY_OPS_PORT": (ops := str(free_port())), "PROXY_STATE_DIR": str(tmp_path)}
        with self.served(environ, tmp_path, sandbox) as server:
            assert check("proxy", python=sys.executable, port=ops) == 0
            mint = [*PROXY, "sessions", "mint", "--tenant", "default", "--subject", "alice"]
            minted = subprocess.run(mint, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=110)
            session = {"authorization": f"Bearer {minted.stdout.strip()}"}
            call = {"prompt": "What is this?", "image_url": "data:image/png;base64,iVBORw0KGgo="}
            url = f"{server.url}/fal/queue/fal-ai/llava-next"
            assert httpx.post(url, json=call, headers=session, **PLAINLY).status_code == 200
            assert httpx.get(f"{server.url}/metrics", **PLAINLY).status_code == 404
            with redis.stopped():
                wait_until(
                    lambda: check("proxy", python=sys.executable, port=ops) != 0, "the proxy is healthy without Redis"
                )

    def test_the_health_check_of_redis_works(self, redis: ComposeRedis) -> None:
        words = services()["redis"]["healthcheck"]["test"]
        assert words == ["CMD", "redis-cli", "ping"]
        asked = ["redis-cli", "-p", str(redis.port), "ping"]
        assert subprocess.run(asked, capture_output=True, text=True, timeout=60).stdout == "PONG\n"

    def test_the_health_check_of_postgresql_works(self, postgres: Postgres) -> None:
        ready, *words = services()["postgres"]["healthcheck"]["test"][1:]
        for port, code in ((postgres.port, 0), (free_port(), 2)):
            asked = [program(ready), *words, "-p", str(port)]
            assert subprocess.run(asked, capture_output=True, timeout=60).returncode == code
