"""The page on security names tests, and each of them exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def test_every_test_that_the_page_names_exists() -> None:
    named = _TEST.findall(PAGE)
    assert len(named) >= 15
    for path, name in named:
        tree = ast.parse((ROOT / path).read_text())
        defined = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
        assert name in defined, f"{path} has no {name}"


def test_every_attacker_and_every_section_names_tests() -> None:
    sections = re.findall(r"^### ([^\n]+)$(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert len(sections) >= 7
    for title, text in sections:
        assert _TEST.search(text), f"{title} names no test"
