"""The YAML of plan files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import yaml

#: Collections in each other, of a file that comes from outside; a plan file has a few.
MOST_DEPTH = 50
#: Values of a file whose aliases are written out. Without a bound, a dozen lines of aliases take all memory and time.
MOST_VALUES = 200_000
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_OLD_NUMBER = re.compile(r"[-+]?(0[0-9_]+|.*:.*)")
_TOO_DEEP = "is nested too deeply"


def parse_document(text: str) -> tuple[Any, list[str]]:
    """Parse a document, and list what YAML reads differently from people.

    These are keys that are there twice, of which YAML silently keeps the last, and numbers in other bases.

    Raises:
        ValueError: it cannot be read, is deep, or is too large; says why, as the end of a sentence.
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None, []
        size = _count_values(node, {})
        if size <= MOST_VALUES:
            problems = [*_duplicate_keys(node, ""), *_old_numbers(node, "")]
            return loader.construct_document(node), problems
    except yaml.YAMLError as problem:
        raise _describe(problem) from problem
    except ValueError as problem:
        # A number of more digits than Python reads, or a day that is in no calendar.
        raise ValueError("has a number or a date that cannot be read") from problem
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    raise ValueError(f"has more than {MOST_VALUES} values when each alias (*) is written out")


def parse_text(text: str) -> Any:
    """Parse the document of a plan file that comes from outside, not from a file of the operator's own.

    Raises:
        ValueError: it is not YAML, names a key twice, is deep or can grow when it is read; says why, as the end of a
            sentence.
    """
    try:
        _check_events(yaml.parse(text, Loader=yaml.SafeLoader))
    except yaml.YAMLError as problem:
        raise _describe(problem) from problem
    document, problems = parse_document(text)
    if problems:
        raise ValueError("; ".join(problems))
    return document


def _check_events(events: Iterable[yaml.Event]) -> None:
    """Make sure that a document is what it says and no more, before it is made: nothing here is recursive."""
    depth = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("has an alias (*); write out what it stands for")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MOST_DEPTH:
            raise ValueError(_TOO_DEEP)


def _count_values(node: yaml.Node, counts: dict[yaml.Node, int]) -> int:
    """Count the values of a node with each alias written out; each node is looked at once."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if node not in counts:
        # Until it is counted, it is one that contains itself.
        counts[node] = MOST_VALUES + 1
        inner = node.value if isinstance(node, yaml.SequenceNode) else [one for pair in node.value for one in pair]
        counts[node] = 1 + sum(_count_values(one, counts) for one in inner)
    return counts[node]


def _describe(problem: yaml.YAMLError) -> ValueError:
    # Not the mark's own text: it quotes the file, over several lines.
    mark = getattr(problem, "problem_mark", None)
    place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return ValueError(f"is not YAML{place}")


def _old_numbers(node: yaml.Node, where: str) -> Iterator[str]:
    """Yield a sentence for each number that YAML 1.1 reads as octal or sexagesimal: 010 is 8, and 1:30 is 90."""
    if isinstance(node, yaml.SequenceNode):
        for at, item in enumerate(node.value):
            yield from _old_numbers(item, f"{where}{at}.")
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _old_numbers(value, f"{where}{key.value}.")
    elif node.tag in _NUMBERS and _OLD_NUMBER.fullmatch(node.value):
        yield f"{where[:-1]}: YAML reads {node.value[:40]} in base 8 or 60; write digits alone, the first of them not 0"


def _duplicate_keys(node: yaml.Node, where: str) -> Iterator[str]:
    """Yield a sentence for each key that its mapping has already (YAML 1.2.2, section 3.2.1.1: keys are unique)."""
    if isinstance(node, yaml.SequenceNode):
        for at, item in enumerate(node.value):
            yield from _duplicate_keys(item, f"{where}{at}.")
    elif isinstance(node, yaml.MappingNode):
        first_lines: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in first_lines:
                yield f"{where}{name}: stands at line {first_lines[name]} and again at line {line}; keep one"
            first_lines.setdefault(name, line)
            yield from _duplicate_keys(value, f"{where}{name}.")
