"""The commands that the README and docs/ show, run unchanged apart from the address and the secrets."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.test_docs import README, blocks, page, section
from tests.server.commands import Commands
from tests.support.images import PIXEL
from tests.support.limited import NEXT, asking
from tests.support.secrets import SECRET
from tests.support.stack import Stack

tools = pytest.mark.tools
#: The folder of `fal-proxy`.
PROGRAMS = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the plan file of the README."""
    (text,) = blocks(section(README, "Run it"), "yaml")
    (tmp_path / "plans.yaml").write_text(text)
    return tmp_path


def bash(script: str, folder: Path, **environ: str) -> str:
    variables = {"PATH": PROGRAMS, **environ}
    command = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@tools
def test_the_settings_to_run_with_are_ok(folder: Path) -> None:
    (script,) = blocks(section(README, "Run it"), "sh")
    setup, command = script[script.index("export ") :].split(" && fal-proxy serve")
    assert command == "\n"
    assert bash(setup.replace("FAL_KEY=…", "FAL_KEY=an-id:a-secret"), folder) == "ok\n"


@tools
def test_the_backend_mints_a_session(stack: Stack, tmp_path: Path) -> None:
    (script,) = blocks(section(README, "Use it"), "sh")
    where = script.replace("https://ai.example.com", stack.url)
    minted = json.loads(bash(where, tmp_path, TENANT_KEY=stack.tenant_key()))
    assert minted["endpoints"] == ["fal-ai/llava-next"]
    with stack.client(minted["token"]) as alice:
        assert alice.get("/v1/session").json()["subject"] == "alice"


@tools
def test_the_script_for_jobs_prints_the_states_and_the_result(stack: Stack, tmp_path: Path) -> None:
    (script,) = blocks(section(page("api"), "Jobs"), "sh")
    where = script.replace("https://ai.example.com", stack.url)
    # The job waits in the queue until it is watched.
    where = where.replace("What is it?", "What is it? [[pace wait_for_looks=true]]")
    output = bash(where, tmp_path, SESSION=stack.token("the-page"), PICTURE=PIXEL)
    assert "event: status\nid: IN_QUEUE.1.0\n" in output
    assert "event: result\nid: END\n" in output and "You asked: What is it?" in output


@tools
def test_a_job_is_watched_with_fetch(stack: Stack, tmp_path: Path) -> None:
    (program,) = blocks(section(page("api"), "Events of a job"), "js")
    with stack.client(token := stack.token()) as client:
        # Node starts slowly: the job waits until it is watched.
        question = asking("[[pace wait_for_looks=true]] What is it?")
        job = client.post("/v1/jobs", json={"endpoint": NEXT, "input": question}).json()["id"]
    names = f"const proxy = {stack.url!r}, job = {job!r}, session = {token!r};\n"
    (tmp_path / "watch.mjs").write_text(names + program)
    output = bash("node watch.mjs", tmp_path).splitlines()
    assert output[0].startswith("status IN_") and any(line.startswith("result END") for line in output)


def test_the_commands_of_the_operator(folder: Path, commands: Commands) -> None:
    (script,) = blocks(section(page("operations"), "Tenants, keys, sessions"), "sh")
    environ = {"PROXY_DATABASE_URL": f"sqlite:///{folder / 'proxy.db'}", "PROXY_SESSION_SECRETS": SECRET}
    key_id, seen = "", []
    for line in script.splitlines():
        program, *arguments = shlex.split(line.replace("KEY_ID", key_id), comments=True)
        done = commands(*arguments, environ=environ, cwd=folder)
        assert (program, done.code) == ("fal-proxy", 0), done.stderr
        seen.append(" ".join(arguments[:2]))
        if found := re.match(r"fpk_([0-9a-f]+)_", done.stdout):
            key_id = found[1]
    assert key_id and seen[0] == "tenants apply" and len(seen) == 8
