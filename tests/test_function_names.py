"""Functions are named by what they do or give: by a verb or a noun, hardly ever by a bare participle or adjective."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PROXY = TESTS.parent / "proxy"
#: In tests, a block or a fixture often is named by the state it holds: `running()`, `limited`.
MOST_SHARE = {PROXY: 0.01, TESTS: 0.08}
#: One word that ends as participles do, but for verbs and nouns that end so too.
_REGULAR = re.compile(
    r"(?!(?:ceiling|embed|exceed|feed|heading|listing|mapping|meaning|need|ping|proceed|seed|shed|speed|string|succeed)$)"
    r"[a-z0-9]+(?:ed|ing)"
)
_IRREGULAR = re.compile(
    r"begun|born|broken|built|chosen|done|drawn|driven|fallen|found|frozen|given|gone|grown|heard|held|hidden|kept|known|"
    r"lost|made|meant|met|overtaken|paid|said|seen|sent|shown|sold|spent|struck|taken|taught|thought|thrown|told|"
    r"understood|won|written"
)
_ADJECTIVES = re.compile(
    r"all|below|between|dirty|each|every|full|inside|instead|late|latest|lower|lowest|more|most|nearest|others|outside|"
    r"over|plain|same|sendable|silent|stricter|strictest|twice|unknown|usable|whole|within|young"
)


def is_bare(name: str) -> bool:
    word = name.strip("_")
    return any(pattern.fullmatch(word) for pattern in (_REGULAR, _IRREGULAR, _ADJECTIVES))


def test_the_list_knows_participles_from_verbs() -> None:
    assert all(map(is_bare, ("shown", "_begun", "counted", "reading", "whole")))
    assert not any(map(is_bare, ("feed", "ping", "is_gone", "count", "read_whole", "begin", "ceiling")))


@pytest.mark.parametrize("folder", MOST_SHARE, ids=lambda folder: folder.name)
def test_functions_are_hardly_ever_named_by_a_bare_participle_or_adjective(folder: Path) -> None:
    count, bare = 0, []
    for path in sorted(folder.rglob("*.py")):
        if "node_modules" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith(("__", "test_")):
                count += 1
                bare += [f"{path.relative_to(folder)}: {node.name}"] if is_bare(node.name) else []
    assert len(bare) <= MOST_SHARE[folder] * count, f"{len(bare)} of {count}:\n" + "\n".join(bare)
