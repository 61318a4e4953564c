"""What a plan file would change, field by field, for people and for programs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from proxy.redaction import Redactor
from proxy.stores.audit import Change
from proxy.tenants.plan_file import dump_form
from proxy.tenants.plans import Plan, Tenant

_MODELS: Mapping[str, type[BaseModel]] = {"plan": Plan, "tenant": Tenant}
_ABSENT = object()
#: A plan has no secrets, but its URLs may have a password or a token in them.
_redactor = Redactor(())


def describe_dry_run(changes: Sequence[Change]) -> dict[str, Any]:
    """Describe as JSON what would change: whether anything does, and each of the `changes`.

    A change has its `action` (`create` or `change`), `kind`, `id`, and the `fields` that differ. A field has its path
    of names as `field`, and `from` and `to`; one of these is missing for what is added or removed. An entry of a list
    is a field of its own. What is created has the fields that are not the default.
    """
    return {"dry_run": True, "changed": bool(changes), "changes": [_describe(change) for change in changes]}


def _describe(change: Change) -> dict[str, Any]:
    kind, _, verb = change.action.partition(".")
    before, after = change.before or {}, change.after or {}
    if verb == "create" and kind in _MODELS:
        after = dump_form(_MODELS[kind].model_validate(after))
        after.pop("id", None)
    return {"action": verb, "kind": kind, "id": change.target, "fields": list(_compare(before, after, ""))}


def format_changes(changes: Sequence[Mapping[str, Any]]) -> str:
    """Write the `changes` of a dry run as lines of printable ASCII."""
    lines = []
    for change in changes:
        lines.append(f"{change['action']} {change['kind']} {change['id']}")
        lines += [f"    {_format_field(field)}" for field in change["fields"]]
    return "\n".join(lines)


def _format_field(field: Mapping[str, Any]) -> str:
    old, new = (json.dumps(field[name]) if name in field else "" for name in ("from", "to"))
    if old and new:
        return f"{field['field']}: {old} -> {new}"
    return f"{field['field']}: {'+' if new else '-'} {new or old}"


def _compare(old: Any, new: Any, where: str) -> Iterator[dict[str, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in [*old, *(name for name in new if name not in old)]:
            path = f"{where}.{name}" if where else name
            yield from _compare(old.get(name, _ABSENT), new.get(name, _ABSENT), path)
    elif _is_list(old) and _is_list(new) and (old or new):
        yield from _compare_entries(old, new, where)
    elif old is _ABSENT and _is_list(new) and new:
        yield from _compare_entries([], new, where)
    elif old is _ABSENT and isinstance(new, Mapping) and new:
        yield from _compare({}, new, where)
    elif old is _ABSENT or new is _ABSENT or old != new:
        yield _field(where, old, new)


def _compare_entries(old: Sequence[Any], new: Sequence[Any], where: str) -> Iterator[dict[str, Any]]:
    """Yield the entries that leave a list or enter it; the whole list if only its order changes."""
    removed, added = _subtract(old, new), _subtract(new, old)
    yield from (_field(where, entry, _ABSENT) for entry in removed)
    yield from (_field(where, _ABSENT, entry) for entry in added)
    if not (removed or added) and list(old) != list(new):
        yield _field(where, old, new)


def _subtract(entries: Sequence[Any], others: Sequence[Any]) -> list[Any]:
    """Return the entries that are left when the others are taken out, one for one."""
    left, found = Counter(map(_to_key, others)), []
    for entry in entries:
        if left[key := _to_key(entry)]:
            left[key] -= 1
        else:
            found.append(entry)
    return found


def _to_key(entry: Any) -> str:
    # Not the entries themselves: for Python, 1 is true.
    return json.dumps(entry, sort_keys=True)


def _field(where: str, old: Any, new: Any) -> dict[str, Any]:
    values = {"from": old, "to": new}
    return {"field": where} | {name: _clean(value) for name, value in values.items() if value is not _ABSENT}


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return _redactor.clean(value)
    if isinstance(value, Mapping):
        return {name: _clean(one) for name, one in value.items()}
    return [_clean(one) for one in value] if _is_list(value) else value


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)
