"""A proxy in a process of its own, and a quick way to run commands beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.server.commands import Commands, Done, Server, serving
from tests.support.sandbox import SandboxControl
from tests.support.secrets import SECRET
from tests.support.stack import Stack, proxy_in_front_of, sandbox_environ

PLANS = {
    "plans": {
        "full": {"endpoints": ["fal-ai/llava-next", "fal-ai/llavav15-13b"], "session_ttl_seconds": 3600},
        "narrow": {"endpoints": ["fal-ai/llava-next"], "max_tokens": 64},
    },
    "tenants": [{"id": "acme", "plan": "full"}, {"id": "small", "plan": "narrow"}],
}


@dataclass
class Cli:
    """The command line in a folder with a plan file and a database, which its environment names."""

    folder: Path
    environ: dict[str, str]
    commands: Commands

    def run(self, *arguments: str, **more: str) -> Done:
        return self.commands(*arguments, environ={**self.environ, **more}, cwd=self.folder)

    def data(self, *arguments: str) -> str:
        """What a command that succeeds prints to stdout, without the end of the line."""
        done = self.run(*arguments)
        assert done.code == 0, done.stderr
        return done.stdout.removesuffix("\n")


def cli_in(folder: Path, commands: Commands) -> Cli:
    (folder / "plans.yaml").write_text(yaml.safe_dump(PLANS))
    environ = {
        "PROXY_CONFIG": str(folder / "plans.yaml"),
        "PROXY_DATABASE_URL": f"sqlite:///{folder / 'proxy.db'}",
        "PROXY_SESSION_SECRETS": SECRET,
    }
    return Cli(folder, environ, commands)


@pytest.fixture
def cli(tmp_path: Path, commands: Commands) -> Cli:
    return cli_in(tmp_path, commands)


@dataclass
class Running:
    cli: Cli
    server: Server
    sandbox: SandboxControl


@pytest.fixture(scope="session")
def shared_running(
    shared_sandbox: SandboxControl, commands: Commands, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    cli = cli_in(tmp_path_factory.mktemp("running"), commands)
    cli.environ |= sandbox_environ(shared_sandbox.url)
    with serving("serve", environ=cli.environ, folder=cli.folder) as server:
        yield Running(cli, server, shared_sandbox)


#: An origin that every tenant's pages may use, beside those of the tenants.
EVERYWHERE = "https://everywhere.example"


@pytest.fixture(scope="session")
def shared_production(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("production")
    with proxy_in_front_of(shared_sandbox, folder, environ={"PROXY_ALLOWED_ORIGINS": EVERYWHERE}) as stack:
        yield stack


@pytest.fixture
def production(shared_production: Stack, sandbox: SandboxControl) -> Stack:
    """A stack that is not in dev mode: no page, and cookies are Secure."""
    return shared_production


@pytest.fixture
def beside(shared_running: Running, sandbox: SandboxControl) -> Running:
    """A server that runs, and the command line beside it, on the same database."""
    return shared_running
