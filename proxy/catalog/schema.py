"""What an endpoint's JSON schema says about the values that the proxy itself looks at: URLs and whole numbers.

A schema is read once, when its endpoint is made. A value is a URL if its `format` says so, or its name: fal's own
schemas give `image_url` and its kind no format.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

_URL_FORMATS = frozenset({"uri", "uri-reference", "iri", "iri-reference", "url"})
_URL_NAME = re.compile(r"(?:.*[_-])?ur[il]s?|.*[a-z0-9](?:Ur[il]|UR[IL])s?", re.DOTALL)
_ALTERNATIVES = ("allOf", "anyOf", "oneOf")
_MAX_NAME_LENGTH = 200


@dataclass(slots=True)
class Shape:
    """One place of an input, and the places in it.

    Attributes:
        is_url: whether a string here, or in a list here, is an address that fal fetches.
        is_integer: whether the schema wants a whole number here.
        items: each item of a list.
        others: each value of an object whose name is none of `properties`.
    """

    is_url: bool = False
    is_integer: bool = False
    properties: dict[str, Shape] = field(default_factory=dict)
    items: Shape | None = None
    others: Shape | None = None


def is_url_name(name: str) -> bool:
    """Return whether a field with this name holds URLs: `url`, `image_url`, `mask_urls`, `imageUrl`."""
    # A longer name is nothing that a model knows, and is not to fill the cache.
    return _is_url_name(name) if len(name) <= _MAX_NAME_LENGTH else bool(_URL_NAME.fullmatch(name[-_MAX_NAME_LENGTH:]))


@lru_cache(maxsize=1024)
def _is_url_name(name: str) -> bool:
    return bool(_URL_NAME.fullmatch(name) or _URL_NAME.fullmatch(name.lower()))


def shape_of(schema: Mapping[str, Any]) -> Shape:
    """Read the schema of a whole input."""
    return _shape([schema], schema, {})


def _shape(schemas: Iterable[Any], root: Mapping[str, Any], known: dict[frozenset[int], Shape]) -> Shape:
    """Merge the schemas that describe one place into its shape. `known` ends the recursion of one that names itself."""
    nodes = list(_resolve(schemas, root))
    key = frozenset(map(id, nodes))
    if key in known:
        return known[key]
    shape = known[key] = Shape(
        is_url=any(node.get("format") in _URL_FORMATS for node in nodes if isinstance(node.get("format"), str)),
        is_integer=any("integer" in _as_list(node.get("type")) for node in nodes),
    )
    named: dict[str, list[Any]] = {}
    for node in nodes:
        for name, inner in _mapping(node.get("properties")).items():
            named.setdefault(name, []).append(inner)
    for name, inners in named.items():
        shape.properties[name] = _shape_of_name(name, _shape(inners, root, known))
    if items := [item for node in nodes for key in ("prefixItems", "items") for item in _as_list(node.get(key))]:
        shape.items = _shape(items, root, known)
    if others := [one for node in nodes for one in _other_schemas(node)]:
        shape.others = _shape(others, root, known)
    return shape


def _shape_of_name(name: str, shape: Shape) -> Shape:
    """Make a place a URL if its name says so, whatever the schema says."""
    if shape.is_url or not is_url_name(name):
        return shape
    return Shape(True, shape.is_integer, shape.properties, shape.items, shape.others)


def _resolve(schemas: Iterable[Any], root: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the schemas, and those that they refer to or combine, each once."""
    waiting, seen = list(schemas), set()
    while waiting:
        node = waiting.pop()
        if not isinstance(node, Mapping) or id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        waiting += [one for key in _ALTERNATIVES for one in _as_list(node.get(key))]
        waiting += [node.get("then"), node.get("else"), _follow_reference(node.get("$ref"), root)]


def _follow_reference(reference: object, root: Mapping[str, Any]) -> Any:
    """Find what a reference within the document leads to."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    found: Any = root
    for step in filter(None, unquote(reference[1:]).split("/")):
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list):
            found = found[int(name)] if name.isdecimal() and int(name) < len(found) else None
        else:
            found = _mapping(found).get(name)
    return found


def _other_schemas(node: Mapping[str, Any]) -> list[Any]:
    return [node.get("additionalProperties"), *_mapping(node.get("patternProperties")).values()]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
