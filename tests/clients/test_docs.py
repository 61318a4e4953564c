"""The programs in docs/clients.md, run unchanged apart from the address, the session and the picture."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clients.expectations import PICTURE, describes_the_picture, environment
from tests.clients.install import HERE, JVM, NODE, python_of
from tests.support.stack import Stack

pytestmark = pytest.mark.tools

PAGE = HERE.parents[1] / "docs" / "clients.md"
_BLOCK = re.compile(r"^```(\w+) \{\.run(?: data-package=(\S+))?\}\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Program:
    """A fenced block of the class `run`, perhaps with the package to run it with."""

    language: str
    package: str
    text: str

    def made_real(self, stack: Stack) -> str:
        """The text with the real address, a session and the picture."""
        where = self.text.replace("https://ai.example.com", stack.url)
        where = where.replace("ai.example.com", stack.url.removeprefix("https://"))
        where = where.replace("PICTURE_IN_BASE64", base64.b64encode(PICTURE.read_bytes()).decode())
        return where.replace("YOUR_SESSION", stack.token())


PROGRAMS = [Program(*match) for match in _BLOCK.findall(PAGE.read_text())]


def _node(folder: Path, program: Program, text: str) -> list[str]:
    scope = folder / "node_modules" / "@fal-ai"
    scope.mkdir(parents=True)
    package = program.package or "client-1.10.1"
    (scope / "client").symlink_to(NODE / "node_modules" / package, target_is_directory=True)
    (folder / "ask.mjs").write_text(text)
    return ["node", "ask.mjs"]


def _python(folder: Path, _program: Program, text: str) -> list[str]:
    (folder / "ask.py").write_text(text)
    return [str(python_of("1.0.3") / "bin" / "python"), "ask.py"]


def _java(folder: Path, _program: Program, text: str) -> list[str]:
    (folder / "Ask.java").write_text(text)
    return ["java", "-cp", f"{JVM}/lib/*", "Ask.java"]


PREPARE = {"js": _node, "python": _python, "java": _java}


@pytest.mark.parametrize("program", PROGRAMS, ids=[f"{i}-{p.language}" for i, p in enumerate(PROGRAMS)])
def test_program(program: Program, shared_stack: Stack, shared_tls_stack: Stack, tmp_path: Path) -> None:
    # Only the Python client insists on TLS; the JVM would want the authority in a key store of its own.
    stack = shared_tls_stack if program.language == "python" else shared_stack
    shutil.copy(PICTURE, tmp_path / "cat.png")
    command = PREPARE[program.language](tmp_path, program, program.made_real(stack))
    variables = environment(SSL_CERT_FILE=str(shared_tls_stack.ca_file))
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert describes_the_picture(done.stdout)


def test_every_language_is_there() -> None:
    assert {program.language for program in PROGRAMS} == set(PREPARE)
