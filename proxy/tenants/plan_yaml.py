"""The YAML of plan files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

import yaml
from yaml.reader import ReaderError

from proxy.strict_json import parse_strictly

#: Collections in each other, of a file that comes from outside; a plan file has a few.
MOST_DEPTH = 50
#: Values of a file whose aliases are written out. Without a bound, a dozen lines of aliases take all memory and time.
MOST_VALUES = 200_000
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_OLD_NUMBER = re.compile(r"[-+]?(0[0-9_]+|.*:.*)")
#: What a key may be by mistake.
_KINDS = {
    "tag:yaml.org,2002:bool": "true or false",
    "tag:yaml.org,2002:int": "a number",
    "tag:yaml.org,2002:float": "a number",
    "tag:yaml.org,2002:null": "nothing",
    "tag:yaml.org,2002:timestamp": "a date",
}
_MOST_REASON_CHARS = 100
_TOO_DEEP = "is nested too deeply"


def parse_document(text: str) -> tuple[Any, list[str]]:
    """Parse a document, and list what YAML reads differently from people.

    These are keys that are there twice, of which YAML silently keeps the last, keys that are no text, and numbers in
    other bases. A document of JSON is read as such: YAML refuses its tabs, and halves its surrogate pairs.

    Raises:
        ValueError: it cannot be read, is deep, or is too large; says why, as the end of a sentence.
    """
    if text.lstrip("\ufeff \t\r\n").startswith("{"):
        with suppress(ValueError):
            return parse_strictly(text.lstrip("\ufeff")), []
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None, []
        size = _count_values(node, {})
        if size <= MOST_VALUES:
            places = list(_walk(node, ""))
            problems = [problem for find in _RULES for place in places for problem in find(*place)]
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
    """Say what is wrong where. The text of a mark is left out: it quotes the file, over several lines."""
    if isinstance(problem, ReaderError):
        return ValueError(f"has the character U+{problem.character:04X}, which YAML does not allow; save it as UTF-8")
    why, mark = str(getattr(problem, "problem", None) or ""), getattr(problem, "problem_mark", None)
    place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    if why == "but found another document":
        return ValueError(f"has a second document{place} (---); keep one")
    if why.startswith(r"found character '\t'"):
        return ValueError(f"has a tab{place}; YAML indents with spaces")
    return ValueError(f"is not YAML{place}" + (f" ({why[:_MOST_REASON_CHARS]})" if why else ""))


def _walk(node: yaml.Node, where: str) -> Iterator[tuple[str, yaml.Node]]:
    """List a node and all below it, each with the path that leads there, which ends in a point."""
    yield where, node
    if isinstance(node, yaml.SequenceNode):
        for at, item in enumerate(node.value):
            yield from _walk(item, f"{where}{at}.")
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _walk(value, f"{where}{key.value}.")


def _find_duplicate_keys(where: str, node: yaml.Node) -> Iterator[str]:
    """Yield a sentence for each key that its mapping has already (YAML 1.2.2, section 3.2.1.1: keys are unique)."""
    first_lines: dict[str, int] = {}
    repeated: set[str] = set()
    for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
        name, line = str(key.value), key.start_mark.line + 1
        if name in first_lines and name not in repeated:
            repeated.add(name)
            yield f"{where}{name}: stands at line {first_lines[name]} and again at line {line}; keep one"
        first_lines.setdefault(name, line)


def _find_odd_keys(where: str, node: yaml.Node) -> Iterator[str]:
    """Yield a sentence for each key that YAML reads as something else than text: `no` is false, and 2024 a number."""
    for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
        kind = _KINDS.get(key.tag)
        if kind is not None:
            yield f"{where}{key.value}: YAML reads this key as {kind}; put it in quotes"


def _find_old_numbers(where: str, node: yaml.Node) -> Iterator[str]:
    """Yield a sentence for a number that YAML 1.1 reads as octal or sexagesimal: 010 is 8, and 1:30 is 90."""
    if isinstance(node, yaml.ScalarNode) and node.tag in _NUMBERS and _OLD_NUMBER.fullmatch(node.value):
        yield f"{where[:-1]}: YAML reads {node.value[:40]} in base 8 or 60; write digits alone, the first of them not 0"


#: What a plan file may not have, though it is YAML.
_RULES = (_find_duplicate_keys, _find_odd_keys, _find_old_numbers)
