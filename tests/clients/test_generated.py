"""Clients that are generated from `/openapi.json`: no generator warns, and what they generate works."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clients.install import GENERATED, HERE, python_of
from tests.server.commands import PLAINLY
from tests.support.stack import Stack

pytestmark = [pytest.mark.tools, pytest.mark.timeout(180)]
SOURCES = HERE / "generated"
TSC_OPTIONS = ("--strict", "--noEmitOnError", "--target", "es2022", "--module", "nodenext", "--types", "node")


@pytest.fixture
def document(shared_stack: Stack, tmp_path: Path) -> Path:
    path = tmp_path / "openapi.json"
    path.write_bytes(httpx.get(f"{shared_stack.url}/openapi.json", **PLAINLY).raise_for_status().content)
    return path


def test_a_python_client(shared_stack: Stack, document: Path, tmp_path: Path) -> None:
    python = python_of("generated") / "bin"
    config = tmp_path / "config.yaml"
    config.write_text("post_hooks: []\n")
    generate = ("generate", "--path", document, "--output-path", tmp_path / "client", "--config", config)
    words = run(python / "openapi-python-client", *generate, "--fail-on-warning")
    assert "WARNING" not in words
    arguments = (shared_stack.url, shared_stack.token("generator"), shared_stack.tenant_key())
    outcome = call(python / "python", SOURCES / "call.py", *arguments, PYTHONPATH=str(tmp_path / "client"))
    assert outcome["created"] == outcome["status"] == outcome["listed"][0]
    assert (outcome["subject"], outcome["refused"], outcome["size"]) == ("generated", "not_found", 22)
    assert outcome["submitted_at"].endswith("+00:00")


def test_a_typescript_client(shared_stack: Stack, document: Path, tmp_path: Path) -> None:
    shutil.copy(SOURCES / "call.ts", tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "node_modules").symlink_to(GENERATED / "node_modules")
    programs = GENERATED / "node_modules" / ".bin"
    words = run(programs / "openapi-typescript", document, "--output", tmp_path / "schema.ts")
    assert "warn" not in words.lower()
    run(programs / "tsc", *TSC_OPTIONS, "call.ts", cwd=tmp_path)
    outcome = call("node", "call.js", shared_stack.url, shared_stack.token("typed"), cwd=tmp_path)
    assert outcome["listed"] == [outcome["created"]] and "cursor" in outcome
    assert (outcome["subject"], outcome["refused"]) == ("typed", "not_found")


def call(*command: str | Path, cwd: Path | None = None, **environ: str) -> dict[str, Any]:
    outcome: dict[str, Any] = json.loads(run(*command, cwd=cwd, **environ))
    return outcome


def run(*command: str | Path, cwd: Path | None = None, **environ: str) -> str:
    """Run a program and return its output, which is also the message if the program fails."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "NO_COLOR": "1", **environ},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout if "openapi" not in str(command[0]) else done.stdout + done.stderr
