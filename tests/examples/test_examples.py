"""The examples, run as their README says, against a real proxy and sandbox. The page is in tests/browser."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.clients.expectations import describes_the_picture, environment
from tests.clients.install import NODE, python_of
from tests.server.commands import PLAINLY
from tests.support.servers import free_port
from tests.support.stack import Stack
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PICTURE = ROOT / "tests" / "pictures" / "chelsea.png"
QUESTION = 'Is the "cat" ginger? [[pace run_seconds=0.3]]'

tools = pytest.mark.tools


@pytest.fixture
def node_folder(tmp_path: Path) -> Path:
    """The example as `npm ci` leaves it: with the very version that its manifest names."""
    shutil.copytree(EXAMPLES / "node", tmp_path / "node", ignore=shutil.ignore_patterns("node_modules"))
    scope = tmp_path / "node" / "node_modules" / "@fal-ai"
    scope.mkdir(parents=True)
    version = json.loads((EXAMPLES / "node" / "package.json").read_text())["dependencies"]["@fal-ai/client"]
    (scope / "client").symlink_to(NODE / "node_modules" / f"client-{version}", target_is_directory=True)
    return tmp_path / "node"


def run(
    command: list[str], stack: Stack, session: str | None = None, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    variables = {"FAL_PROXY_URL": stack.url, "FAL_PROXY_SESSION": session or stack.token()}
    if stack.ca_file:
        variables["SSL_CERT_FILE"] = str(stack.ca_file)
    return subprocess.run(command, cwd=cwd, env=environment(**variables), capture_output=True, text=True, timeout=60)


def prompts(stack: Stack) -> list[str]:
    """The prompt that the model received."""
    return [one["json"]["prompt"] for one in stack.sandbox.requests() if one["json"] and "prompt" in one["json"]]


@tools
def test_node(stack: Stack, node_folder: Path) -> None:
    done = run(["node", "ask.mjs", str(PICTURE), QUESTION], stack, cwd=node_folder)
    assert done.returncode == 0, done.stderr
    assert describes_the_picture(done.stdout) and prompts(stack) == [QUESTION]
    assert done.stderr.rstrip().endswith("COMPLETED")


@tools
def test_node_prints_a_refusal(stack: Stack, node_folder: Path) -> None:
    session = stack.token(endpoints=["fal-ai/llavav15-13b"])
    done = run(["node", "ask.mjs", str(PICTURE)], stack, session, node_folder)
    assert (done.returncode, done.stdout) == (1, "") and "(endpoint_not_allowed)" in done.stderr


@tools
def test_python(tls_stack: Stack) -> None:
    python = str(python_of("1.0.3") / "bin" / "python")
    done = run([python, str(EXAMPLES / "python" / "ask.py"), str(PICTURE), QUESTION], tls_stack)
    assert done.returncode == 0, done.stderr
    assert describes_the_picture(done.stdout) and prompts(tls_stack) == [QUESTION]
    assert "Completed" in done.stderr


@tools
def test_python_prints_a_refusal(tls_stack: Stack) -> None:
    python = str(python_of("1.0.3") / "bin" / "python")
    done = run([python, str(EXAMPLES / "python" / "ask.py"), str(PICTURE)], tls_stack, session="nonsense")
    assert (done.returncode, done.stdout) == (1, "") and "(unauthenticated)" in done.stderr


def test_the_python_example_names_the_tested_version() -> None:
    assert (EXAMPLES / "python" / "requirements.txt").read_text() == "fal-client==1.0.3\n"


@tools
def test_curl(stack: Stack) -> None:
    done = run([str(EXAMPLES / "curl" / "ask.sh"), str(PICTURE), QUESTION], stack)
    assert done.returncode == 0, done.stderr
    assert describes_the_picture(json.loads(done.stdout)["output"]) and prompts(stack) == [QUESTION]
    updates = [json.loads(line) for line in done.stderr.splitlines()]
    assert updates[-1]["status"] == "COMPLETED" and any(update["logs"] for update in updates)


@tools
def test_curl_prints_a_refusal(stack: Stack) -> None:
    done = run([str(EXAMPLES / "curl" / "ask.sh"), str(PICTURE)], stack, session="nonsense")
    assert done.returncode == 22 and prompts(stack) == []


@contextlib.contextmanager
def backend(stack: Stack) -> Iterator[str]:
    port = free_port()
    variables = {"FAL_PROXY_URL": stack.url, "FAL_PROXY_TENANT_KEY": stack.tenant_key(), "PORT": str(port)}
    command = [sys.executable, str(EXAMPLES / "backend" / "mint.py")]
    with subprocess.Popen(command, env={**os.environ, **variables}, stderr=subprocess.DEVNULL) as process:
        url = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            with contextlib.suppress(httpx.TransportError):
                return httpx.post(url, **PLAINLY).status_code == 404
            return False

        try:
            wait_until(answers, "the backend did not start")
            yield url
        finally:
            process.kill()


def test_backend(stack: Stack) -> None:
    with backend(stack) as url:
        for login in (None, ("alice", "wrong"), ("mallory", ""), ("", "")):
            assert httpx.post(f"{url}/session", auth=login, **PLAINLY).status_code == 401
        minted = httpx.post(f"{url}/session", auth=("alice", "wonderland"), **PLAINLY)
        assert minted.status_code == 201
        with stack.client(minted.json()["token"]) as alice:
            facts = alice.get("/v1/session").json()
        assert (facts["tenant"], facts["subject"]) == ("acme", "alice")


def test_the_readme_names_every_example() -> None:
    named = set(re.findall(r"\]\(([a-z/._-]+)\)", (EXAMPLES / "README.md").read_text()))
    fronts = {"nginx/fal-proxy.conf", "caddy/fal-proxy.caddy"}
    programs = {"node/ask.mjs", "python/ask.py", "curl/ask.sh", "backend/mint.py"} | fronts
    programs |= {"app/", "browser/", "client/", "minting/", "recipes/"}
    assert named == programs
    assert {path.name for path in EXAMPLES.iterdir() if path.is_dir()} == {name.partition("/")[0] for name in programs}
