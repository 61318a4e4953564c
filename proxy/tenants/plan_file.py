"""`PROXY_CONFIG`, the YAML file of plans and tenants: read, checked as a whole, and every problem named in one run."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from proxy.catalog import Catalog, Endpoint, built_in, endpoint_from
from proxy.settings import SettingsError
from proxy.tenants.plans import MoreEndpoint, PlanFile, default_file


def read_file(path: Path | None) -> tuple[PlanFile, Catalog]:
    """Read the plan file and the catalogue that it extends; without a path, the defaults.

    Raises:
        SettingsError: the file is not YAML, names a key twice, breaks the form, or names a plan or an endpoint that
            does not exist.
    """
    if path is None:
        return default_file(), built_in()
    document, problems = _parse(path)
    catalog = built_in().with_more(_more_endpoints(document, path.parent, problems))
    file: PlanFile | None = None
    try:
        file = PlanFile.model_validate(document)
    except ValidationError as problem:
        problems += [_sentence(error) for error in problem.errors()]
    problems += problems_of(document, catalog)
    if problems or file is None:
        raise SettingsError([f"PROXY_CONFIG: {problem}" for problem in problems])
    return file, catalog


def json_schema() -> dict[str, Any]:
    """The JSON schema of the plan file, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | PlanFile.model_json_schema()


def problems_of(document: Any, catalog: Catalog) -> list[str]:
    """Names in a plan file that lead nowhere, one sentence each. Leaves out what has not the form of a plan file."""
    plans = _mapping(_mapping(document).get("plans"))
    problems = []
    for name, plan in plans.items():
        listed = _mapping(plan).get("endpoints")
        if isinstance(listed, list):
            problems += [f"plans.{name}.endpoints: {problem}" for problem in _unknown_endpoints(listed, catalog)]
    seen: list[str] = []
    for tenant in map(_mapping, _list(_mapping(document).get("tenants"))):
        id_, wanted = tenant.get("id"), {tenant.get("plan"), _mapping(tenant.get("guests")).get("plan")}
        unknown = sorted(one for one in wanted if isinstance(one, str) and one not in plans)
        problems += [f"tenants.{id_}: there is no plan {one}{_suggest(one, plans)}" for one in unknown]
        seen += [id_] if isinstance(id_, str) else []
    problems += [f"tenants: {one} stands there twice" for one in sorted({id_ for id_ in seen if seen.count(id_) > 1})]
    return problems


def _unknown_endpoints(listed: list[Any], catalog: Catalog) -> list[str]:
    if not listed:
        return ["allows nothing; name at least one endpoint"]
    known = catalog.ids()
    unknown = sorted(one for one in listed if isinstance(one, str) and one not in catalog)
    return [f"{one} is not in the catalogue{_suggest(one, known)}" for one in unknown]


def _parse(path: Path) -> tuple[Any, list[str]]:
    """The document, and the keys that it names twice: YAML itself keeps the last one without a word."""
    try:
        text = path.read_text()
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        problems = [] if node is None else list(_duplicate_keys(node, ""))
        return yaml.safe_load(text), problems
    except (OSError, UnicodeDecodeError) as problem:
        raise SettingsError([f"PROXY_CONFIG: {path.name} cannot be read ({type(problem).__name__})"]) from problem
    except yaml.YAMLError as problem:
        # Not the mark's own text: it quotes the file, over several lines.
        mark = getattr(problem, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise SettingsError([f"PROXY_CONFIG: {path.name} is not YAML{place}"]) from problem
    except ValueError as problem:
        # A number of more digits than Python reads, or a day that is in no calendar.
        raise SettingsError([f"PROXY_CONFIG: {path.name} has a number or a date that cannot be read"]) from problem


def _duplicate_keys(node: yaml.Node, where: str) -> Iterator[str]:
    """One sentence for each key that stands in its mapping already (YAML 1.2.2, section 3.2.1.1: keys are unique)."""
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


def _sentence(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"]) or "the file"
    more = _suggest(str(error["loc"][-1]), _fields_at(error["loc"][:-1])) if error["type"] == "extra_forbidden" else ""
    return f"{where}: {error['msg'].removeprefix('Value error, ')}{more}"


def _fields_at(where: tuple[str | int, ...]) -> list[str]:
    """The keys that a plan file knows at a place."""
    model: type[BaseModel] = PlanFile
    for part in where:
        found = model.model_fields.get(str(part))
        model = next(_models_in(found.annotation), model) if found else model
    return [field.alias or name for name, field in model.model_fields.items()]


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def _suggest(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _more_endpoints(document: Any, folder: Path, problems: list[str]) -> list[Endpoint]:
    """The endpoints that the file adds; one that breaks the form is among the problems of the form."""
    endpoints = []
    for row in _list(_mapping(document).get("endpoints")):
        try:
            more = MoreEndpoint.model_validate(row)
        except ValidationError:
            continue
        known = built_in().get(more.id)
        if more.schema_ is None and known is not None:
            endpoints.append(replace(known, price_per_compute_second=more.price_per_compute_second))
            continue
        if more.schema_ is None:
            problems.append(f"endpoints: {more.id}: is not built in, so it needs a schema")
            continue
        try:
            described = {"id": more.id, "input": json.loads((folder / more.schema_).read_text())}
            endpoints.append(endpoint_from(described, price_per_compute_second=more.price_per_compute_second))
        except (OSError, ValueError) as problem:
            why = str(problem).partition("\n")[0]
            problems.append(f"endpoints: {more.id}: the schema {more.schema_} cannot be used ({why})")
    return endpoints


def _mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
