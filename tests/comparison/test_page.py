"""`docs/comparison.md` names every test and every version, and no others."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = (HERE.parents[1] / "docs" / "comparison.md").read_text()


def test_every_test_is_on_the_page() -> None:
    trees = [ast.parse((HERE / name).read_text()) for name in ("test_flaws.py", "test_common_ground.py")]
    functions = {node.name for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)}
    tests = {name for name in functions if name.startswith("test_")}
    assert set(re.findall(r"`(test_\w+)`", PAGE)) == tests


def test_versions_are_those_that_are_installed() -> None:
    wanted = json.loads((HERE / "node" / "package.json").read_text())["dependencies"]
    assert dict(re.findall(r"^\| `(\S+)` \| ([\d.]+)", PAGE, re.MULTILINE)) == wanted
