"""`PROXY_CONFIG`, the YAML file of plans and tenants: read, checked as a whole, and every problem named in one run."""

from __future__ import annotations

import difflib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from proxy.catalog import Catalog, Endpoint, built_in, endpoint_from
from proxy.settings import SettingsError
from proxy.strict_json import parse_strictly
from proxy.tenants.directory import Snapshot
from proxy.tenants.form_problems import YAML, describe_problem, find_place
from proxy.tenants.key_set import MAX_BYTES, KeySet
from proxy.tenants.plan_yaml import parse_document
from proxy.tenants.plans import MoreEndpoint, Plan, PlanFile, Quota, Tenant, default_file, list_repeated
from proxy.tenants.prices import find_unpriced

M = TypeVar("M", bound=BaseModel)
NOTHING_KNOWN = Snapshot()
#: What is read may be a device that never ends.
MOST_FILE_BYTES = 8 * 1024 * 1024

_NEEDS_PILLOW = (
    "needs Pillow, which is not installed; install it with: pip install pillow; build an image that contains it with: "
    "--build-arg PICTURES=on"
)
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]*/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]*")
_NO_MEDIA_TYPE = "is no media type such as image/png, without wildcard and parameters: no file has it"


def read_file(path: Path | None, known: Snapshot = NOTHING_KNOWN) -> tuple[PlanFile, Catalog]:
    """Read the plan file and the catalogue that it extends; without a path, the defaults.

    Args:
        known: what the file is applied to, for the prices that it does not name itself.

    Raises:
        SettingsError: the file is not YAML, names a key twice, breaks the form, names a plan or an endpoint that does
            not exist, or has a quota of usd for an endpoint without a price.
    """
    if path is None:
        return default_file(), built_in().with_more([])
    document, problems = _parse(path)
    catalog = built_in().with_more(_more_endpoints(document, path.parent, problems))
    _read_key_sets(document, path.parent, problems)
    file: PlanFile | None = None
    try:
        file = PlanFile.model_validate(document)
    except ValidationError as problem:
        # Keys that are no text are among the problems already, by the names that the file has for them.
        problems += [_sentence(error) for error in problem.errors() if not _is_odd_key(error)]
    problems += problems_of(document, catalog, known)
    if problems or file is None:
        raise SettingsError([f"PROXY_CONFIG: {problem}" for problem in problems])
    catalog.set_prices(file.prices)
    return file, catalog


def describe_file(snapshot: Snapshot, schemas: Mapping[str, Path]) -> dict[str, Any]:
    """Give the plan file of what the directory holds, without what is the default; applied, it changes nothing.

    Args:
        schemas: where the schemas of endpoints lie that are not built in, by endpoint.
    """
    endpoints = [
        {"id": id_}
        | ({"schema": str(schemas[id_])} if id_ in schemas else {})
        | ({"price_per_compute_second": snapshot.prices[id_]} if id_ in snapshot.prices else {})
        for id_ in sorted(schemas.keys() | snapshot.prices.keys())
    ]
    return {
        "plans": {name: dump_form(plan) for name, plan in sorted(snapshot.plans.items())},
        "tenants": [dump_form(tenant) for _, tenant in sorted(snapshot.tenants.items())],
        **({"endpoints": endpoints} if endpoints else {}),
    }


def dump_yaml(document: Mapping[str, Any]) -> str:
    """Write a plan file as people read it."""
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)


def dump_form(form: BaseModel) -> dict[str, Any]:
    """Write a form as the plan file has it, without what is the default."""
    fields = type(form).model_fields
    dumped = form.model_dump(mode="json")
    return {name: value for name, value in dumped.items() if getattr(form, name) != fields[name].default}


def json_schema() -> dict[str, Any]:
    """Make the JSON schema of the plan file, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | PlanFile.model_json_schema()


def problems_of(document: Any, catalog: Catalog, known: Snapshot = NOTHING_KNOWN) -> list[str]:
    """List the names in a plan file that lead nowhere and the prices that are missing, one sentence each.

    Leaves out what has not the form of a plan file.
    """
    plans = _mapping(_mapping(document).get("plans"))
    problems = []
    for name, plan in plans.items():
        listed = _mapping(plan).get("endpoints")
        if isinstance(listed, list):
            problems += [f"plans.{name}.endpoints: {problem}" for problem in _unknown_endpoints(listed, catalog)]
        quotas = _keep_valid(Quota, enumerate(_list(_mapping(plan).get("quotas")))).values()
        problems += [f"plans.{name}.quotas: {problem}" for problem in list_repeated(quotas)]
        types = _list(_mapping(_mapping(plan).get("uploads")).get("content_types"))
        wrong = [one for one in types if isinstance(one, str) and not _MEDIA_TYPE.fullmatch(one.strip())]
        problems += [f"plans.{name}.uploads.content_types: {one[:100]} {_NO_MEDIA_TYPE}" for one in wrong]
        if _mapping(plan).get("strip_metadata") is True and find_spec("PIL") is None:
            problems.append(f"plans.{name}.strip_metadata: {_NEEDS_PILLOW}")
    for tenant in map(_mapping, _list(_mapping(document).get("tenants"))):
        id_, guests = tenant.get("id"), _mapping(tenant.get("guests"))
        wanted = [tenant.get("plan"), guests.get("plan")]
        wanted += [_mapping(tier).get("plan") for tier in _list(guests.get("tiers"))]
        wanted += chain.from_iterable(map(_plans_of_identity, _list(tenant.get("identity"))))
        unknown = sorted({one for one in wanted if isinstance(one, str)} - plans.keys())
        problems += [f"tenants.{id_}: there is no plan {one}{_suggest(one, plans)}" for one in unknown]
    problems += [problem for section in ("tenants", "endpoints") for problem in _repeated_ids(document, section)]
    return problems + list(_shared_audiences(document)) + list(_missing_prices(document, catalog, known))


def _repeated_ids(document: Any, section: str) -> list[str]:
    """List a sentence for each id that is in a list twice: only one of the two could count."""
    rows = map(_mapping, _list(_mapping(document).get(section)))
    counts = Counter(id_ for row in rows if isinstance(id_ := row.get("id"), str))
    return [f"{section}: {id_} stands there twice" for id_, count in sorted(counts.items()) if count > 1]


def _missing_prices(document: Any, catalog: Catalog, known: Snapshot) -> Iterator[str]:
    """Yield a sentence for each endpoint of the file that a quota of usd limits and that has no price."""
    own = _keep_valid(Plan, _mapping(_mapping(document).get("plans")).items())
    named = _list(_mapping(document).get("tenants"))
    tenants = known.tenants | {one.id: one for one in _keep_valid(Tenant, enumerate(named)).values()}
    rows = map(_mapping, _list(_mapping(document).get("endpoints")))
    prices = {*known.prices, *(str(row.get("id")) for row in rows if row.get("price_per_compute_second") is not None)}
    for (quotas, endpoint), plan in find_unpriced(known.plans | own, tenants.values(), prices).items():
        if endpoint in catalog and not own.keys().isdisjoint((quotas, plan)):
            where = endpoint if plan == quotas else f"{endpoint} of the guests' plan {plan}"
            yield (
                f"plans.{quotas}.quotas: usd counts nothing for {where}, which has no price; "
                "give it a price_per_compute_second in endpoints"
            )


def _keep_valid(model: type[M], documents: Iterable[tuple[Any, Any]]) -> dict[Any, M]:
    """Keep what has the form of a model; the problems of the form name the rest."""
    found = {}
    for name, document in documents:
        with suppress(ValidationError):
            found[name] = model.model_validate(document)
    return found


def _plans_of_identity(identity: Any) -> list[Any]:
    choice = _mapping(_mapping(identity).get("plans"))
    listed = choice.get("map")
    # Pairs, in a document that was written by this program.
    pairs = [pair for pair in listed if len(_list(pair)) == 2] if isinstance(listed, list) else _mapping(listed).items()
    return [choice.get("default"), *(plan for _, plan in pairs)]


def _shared_audiences(document: Any) -> Iterator[str]:
    """Yield a sentence for each issuer and audience that two tenants accept: a token must lead to one tenant."""
    found: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for tenant, identity in _list_identities(document):
        issuer, audience = identity.get("issuer"), identity.get("audience")
        for one in [audience] if isinstance(audience, str) else _list(audience):
            if isinstance(issuer, str) and isinstance(one, str):
                found[issuer, one].append(str(tenant.get("id")))
    for (issuer, one), tenants in sorted(found.items()):
        if len(tenants) > 1:
            names = " and ".join(tenants)
            yield f"tenants: {names} accept the same issuer {issuer} and audience {one}; keep one of them"


def _list_identities(document: Any) -> Iterator[tuple[Mapping[Any, Any], Mapping[Any, Any]]]:
    """Yield each tenant with each of its issuers."""
    for tenant in map(_mapping, _list(_mapping(document).get("tenants"))):
        for identity in map(_mapping, _list(tenant.get("identity"))):
            yield tenant, identity


def _read_key_sets(document: Any, folder: Path, problems: list[str]) -> None:
    """Put what each `jwks_file` holds in its place: other processes read the tenants in the database, not this file."""
    for tenant, identity in _list_identities(document):
        name = identity.get("jwks_file")
        if not isinstance(name, str) or not isinstance(identity, dict) or "jwks" in identity:
            continue
        try:
            with (folder / name).open("rb") as file:
                text = file.read(MAX_BYTES + 1)
            if len(text) > MAX_BYTES:
                raise ValueError(f"more than {MAX_BYTES} bytes")
            identity["jwks"] = parse_strictly(text)
            KeySet(identity["jwks"])
            del identity["jwks_file"]
        except (OSError, ValueError) as problem:
            identity.pop("jwks", None)
            why = type(problem).__name__ if isinstance(problem, OSError | UnicodeError) else str(problem)
            problems.append(f"tenants.{tenant.get('id')}.identity: the key set {name} cannot be used ({why})")


def _unknown_endpoints(listed: list[Any], catalog: Catalog) -> list[str]:
    if not listed:
        return ["allows nothing; name at least one endpoint"]
    known = catalog.ids()
    unknown = sorted(one for one in listed if isinstance(one, str) and one not in catalog)
    return [f"{one} is not in the catalogue{_suggest(one, known)}" for one in unknown]


def _parse(path: Path) -> tuple[Any, list[str]]:
    """Parse the file, and list the keys that it names twice: YAML itself silently keeps the last one."""
    try:
        with path.open("rb") as file:
            content = file.read(MOST_FILE_BYTES + 1)
        if len(content) > MOST_FILE_BYTES:
            raise ValueError(f"has more than {MOST_FILE_BYTES} bytes")
        return parse_document(content.decode())
    except UnicodeDecodeError as problem:
        raise SettingsError([f"PROXY_CONFIG: {path.name} is not UTF-8; save it in this encoding"]) from problem
    except OSError as problem:
        raise SettingsError([f"PROXY_CONFIG: {path.name} cannot be read ({type(problem).__name__})"]) from problem
    except ValueError as problem:
        raise SettingsError([f"PROXY_CONFIG: {path.name} {problem}"]) from problem


def _is_odd_key(error: Any) -> bool:
    return bool(error["type"] == "string_type" and error["loc"][-1] == "[key]")


def _sentence(error: Any) -> str:
    keys = _fields_at(error["loc"]) if error["type"] == "model_type" else ()
    more = _suggest(str(error["loc"][-1]), _fields_at(error["loc"][:-1])) if error["type"] == "extra_forbidden" else ""
    return f"{find_place(error, 'the file')}: {describe_problem(error, YAML, keys)}{more}"


def _fields_at(where: tuple[str | int, ...]) -> list[str]:
    """List the keys that a plan file can have at a place."""
    models: list[type[BaseModel]] = [PlanFile]
    for part in where:
        found = [model.model_fields[str(part)] for model in models if str(part) in model.model_fields]
        models = [model for field in found for model in _models_in(field.annotation)] or models
    return [field.alias or name for model in models for name, field in model.model_fields.items()]


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def _suggest(name: str, known: Iterable[Any]) -> str:
    near = difflib.get_close_matches(name, [one for one in known if isinstance(one, str)], n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _more_endpoints(document: Any, folder: Path, problems: list[str]) -> list[Endpoint]:
    """List the endpoints that the file adds; the problems of the form name those that break it."""
    endpoints = []
    for row in _list(_mapping(document).get("endpoints")):
        try:
            more = MoreEndpoint.model_validate(row)
        except ValidationError:
            continue
        if more.schema_ is None:
            if more.id not in built_in():
                problems.append(f"endpoints: {more.id}: is not built in, so it needs a schema")
            continue
        try:
            described = {"id": more.id, "input": parse_strictly((folder / more.schema_).read_bytes())}
            endpoints.append(endpoint_from(described))
        except (OSError, ValueError) as problem:
            why = str(problem).partition("\n")[0]
            problems.append(f"endpoints: {more.id}: the schema {more.schema_} cannot be used ({why})")
    return endpoints


def _mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
