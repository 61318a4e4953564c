"""The page about the audit log names every action that the program writes, and every kind of author."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "audit.md").read_text()
#: What a plan file has entries of; their actions are put together from these names.
KINDS = ("plan", "tenant", "endpoint")
#: The calls that name an author: which argument it is.
_AUTHORS = {"author_of": 1, "of_process": 0, "TokenHolder": 0, "sign_in_as": 0}


def find_texts(call: str, position: int) -> set[str]:
    """The texts that calls of a function anywhere in the program give it; what is not known in them is `{}`."""
    found = set[str]()
    for path in (ROOT / "proxy").rglob("*.py"):
        # Most files call none of them, and to parse one takes longest.
        if call not in (text := path.read_text()):
            continue
        for scope in ast.walk(ast.parse(text)):
            if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef | ast.Module):
                for node in _calls(scope, call):
                    if len(node.args) > position:
                        found |= set(_texts(node.args[position], scope))
    return found


def _calls(scope: ast.AST, name: str) -> Iterator[ast.Call]:
    for node in ast.walk(scope):
        if isinstance(node, ast.Call) and name in (getattr(node.func, "id", ""), getattr(node.func, "attr", "")):
            yield node


def _texts(node: ast.expr, scope: ast.AST) -> Iterator[str]:
    """What an argument can be: a text, one of two, or what its function assigns to its name."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    elif isinstance(node, ast.IfExp):
        yield from _texts(node.body, scope)
        yield from _texts(node.orelse, scope)
    elif isinstance(node, ast.Name):
        for one in ast.walk(scope):
            if isinstance(one, ast.Assign):
                yield from (text for pair in _pairs(one) if pair[0] == node.id for text in _texts(pair[1], scope))


def _pairs(assignment: ast.Assign) -> Iterator[tuple[str, ast.expr]]:
    for target in assignment.targets:
        if isinstance(target, ast.Tuple) and isinstance(assignment.value, ast.Tuple):
            yield from (
                (getattr(one, "id", ""), value) for one, value in zip(target.elts, assignment.value.elts, strict=True)
            )
        else:
            yield getattr(target, "id", ""), assignment.value


def test_the_page_lists_every_action_and_no_other() -> None:
    written = {text.replace("{}", kind) for text in find_texts("Change", 0) for kind in KINDS}
    assert {"plan.create", "endpoint.change", "tenant.suspend", "override.clear", "console.sign_in"} <= written
    table = PAGE.split("## Actions\n", 1)[1].split("\n## ", 1)[0]
    listed = re.findall(r"`([a-z_]+\.[a-z_]+)`", table)
    assert sorted(listed) == sorted(written)


def test_the_page_names_every_kind_of_author() -> None:
    (line,) = (line for line in PAGE.splitlines() if line.startswith("| `by` |"))
    names = {text for call, position in _AUTHORS.items() for text in find_texts(call, position)}
    assert {"server:start", "command:{}", "key:{}", "oidc:{}"} <= names
    for name in names:
        assert f"`{name.replace('{}', '')}`" in line, name
