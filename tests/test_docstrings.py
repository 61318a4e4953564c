"""The docstring of a function says what it does: it begins with a verb, hardly ever with a noun."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

PROXY = Path(__file__).parents[1] / "proxy"
#: What begins a noun or a clause.
_NOUN_STARTS = re.compile(
    r"(?:an?|all|also|any|as|both|each|every|for|from|how|in|its|none|nothing|of|one|only|that|the|this|those|to|what|when|"
    r"where|whether|which|who|whose|why)\b",
    re.IGNORECASE,
)
MOST_SHARE = 0.01


def begins_with_verb(docstring: str) -> bool:
    return not _NOUN_STARTS.match(docstring)


def list_docstrings(source: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the docstring of each function; a property is a noun."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if any("property" in ast.unparse(decorator) for decorator in node.decorator_list):
            continue
        if docstring := ast.get_docstring(node):
            yield node.name, docstring


def test_a_docstring_that_begins_with_a_noun_is_found() -> None:
    source = """
def is_open(): "Whether it is open."
def find(): "Find it."
async def fetch(): "The answer."
@property
def size(): "The bytes."
def _hidden(): "Help."
"""
    names = [name for name, docstring in list_docstrings(source) if not begins_with_verb(docstring)]
    assert sorted(names) == ["fetch", "is_open"]


def test_docstrings_of_functions_begin_with_a_verb() -> None:
    count, nouns = 0, []
    for path in sorted(PROXY.rglob("*.py")):
        for name, docstring in list_docstrings(path.read_text()):
            count += 1
            if not begins_with_verb(docstring):
                nouns.append(f"{path.relative_to(PROXY)}: {name}: {docstring.splitlines()[0]}")
    assert len(nouns) <= MOST_SHARE * count, f"{len(nouns)} of {count}:\n" + "\n".join(nouns)
