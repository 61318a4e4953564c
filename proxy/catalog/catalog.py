"""The endpoints that may be called at all, each with its input schema.

One JSON file an endpoint lies in `endpoints/`; an operator adds more in the plan file. What is not here does not exist
for the proxy, whatever a plan or a session says.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import jsonschema_rs

from proxy.catalog.schema import Shape, shape_of
from proxy.errors import Detail

#: fal calls the first segment of these ids a namespace: owner and app come after it.
NAMESPACES = frozenset({"workflows", "comfy"})
TOKEN_FIELDS = ("max_tokens", "max_new_tokens")
#: Problems of an input that are listed.
MAX_PROBLEMS = 100
_FOLDER = Path(__file__).with_name("endpoints")


def app_of(endpoint: str) -> str:
    """Return the part of an endpoint id that names its queue: `[namespace/]owner/app`, without a sub-path."""
    segments = endpoint.split("/")
    return "/".join(segments[: 3 if segments[0] in NAMESPACES else 2])


def queue_names(app: str) -> frozenset[str]:
    """Return the names by which fal's clients ask about the jobs of an app.

    Those for Java and Dart leave its namespace out, and the one for Swift takes the first two segments for the app.
    """
    first, *others = app.split("/")
    if first not in NAMESPACES:
        return frozenset((app,))
    return frozenset((app, "/".join(others), "/".join((first, *others[:1]))))


@dataclass(frozen=True)
class Endpoint:
    """One callable endpoint: its id, the JSON schemas of what goes in and comes out, and fal's own token default.

    Attributes:
        shape: where an input has URLs and whole numbers.
    """

    id: str
    title: str
    input_schema: Mapping[str, Any]
    output_schema: Mapping[str, Any] = field(default_factory=dict)
    default_tokens: int | None = None
    shape: Shape = field(init=False, repr=False, compare=False)
    _validator: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", shape_of(self.input_schema))
        object.__setattr__(self, "_validator", jsonschema_rs.validator_for(dict(self.input_schema)))

    @property
    def app(self) -> str:
        return app_of(self.id)

    @cached_property
    def token_field(self) -> str | None:
        """The spelling of the token ceiling that this endpoint's own documentation uses."""
        named = [name for name in TOKEN_FIELDS if name in self.input_schema.get("properties", {})]
        documented = [name for name in named if "default" in self.input_schema["properties"][name]]
        return next(iter(documented or named), None)

    def problems(self, body: object) -> list[Detail]:
        """List what is wrong with an input, in the form in which fal reports it; empty when nothing is."""
        if not self._validator.is_valid(body):
            return [_detail(error) for error in islice(self._validator.iter_errors(body), MAX_PROBLEMS)]
        return []


def _detail(error: Any) -> Detail:
    kind = type(error.kind).__name__.rpartition("_")[2].lower()
    where: list[str | int] = ["body", *error.instance_path]
    if kind == "required":
        return {"loc": [*where, error.kind.property], "msg": "Field required", "type": "missing"}
    return {"loc": where, "msg": _shorten(error.message), "type": kind}


def _shorten(message: str, limit: int = 200) -> str:
    """Shorten the validator's message, which may quote megabytes of a data URI."""
    return message if len(message) <= limit else f"{message[: limit // 2]} … {message[-limit // 2 :]}"


class Catalog:
    """All endpoints by id. Lookups are exact: no prefix, no other case, no sub-path.

    Attributes:
        prices: of a second of compute time, in US dollars, by endpoint: as the directory last had them.
    """

    def __init__(self, endpoints: Iterable[Endpoint]) -> None:
        self._by_id = {endpoint.id: endpoint for endpoint in endpoints}
        self.prices: Mapping[str, float] = {}
        self._apps = lru_cache(maxsize=1024)(self._find_apps)

    def replace(self, other: Catalog) -> None:
        """Take over the endpoints of another catalogue, but not its prices, for all who hold this one."""
        self._by_id = other._by_id
        self._apps.cache_clear()

    def set_prices(self, prices: Mapping[str, float]) -> None:
        """Take over other prices, for all who hold this catalogue."""
        self.prices = prices

    def apps(self, endpoints: frozenset[str]) -> frozenset[str]:
        """List the queues that jobs of these endpoints are in, by all of their names."""
        return self._apps(endpoints)

    def _find_apps(self, endpoints: frozenset[str]) -> frozenset[str]:
        apps = {self._by_id[endpoint].app for endpoint in endpoints if endpoint in self._by_id}
        return frozenset(name for app in apps for name in queue_names(app))

    def get(self, endpoint: str) -> Endpoint | None:
        return self._by_id.get(endpoint)

    def ids(self) -> list[str]:
        return sorted(self._by_id)

    def with_more(self, endpoints: Iterable[Endpoint]) -> Catalog:
        return Catalog([*self, *endpoints])

    def __iter__(self) -> Iterator[Endpoint]:
        return iter(self._by_id.values())

    def __contains__(self, endpoint: object) -> bool:
        return endpoint in self._by_id

    def __len__(self) -> int:
        return len(self._by_id)


def endpoint_from(document: Mapping[str, Any]) -> Endpoint:
    """Make an endpoint from the JSON of a catalogue file.

    Raises:
        ValueError: a key is missing, or `input` is not a valid JSON schema.
    """
    try:
        return Endpoint(
            id=document["id"],
            title=document.get("title", document["id"]),
            input_schema=document["input"],
            output_schema=document.get("output", {}),
            default_tokens=document.get("default_tokens"),
        )
    except KeyError as missing:
        raise ValueError(f"the key {missing} is missing") from missing


@cache
def built_in() -> Catalog:
    """Load the endpoints that come with the program."""
    return Catalog(endpoint_from(json.loads(path.read_text())) for path in sorted(_FOLDER.glob("*.json")))
