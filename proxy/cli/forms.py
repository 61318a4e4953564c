"""Options that fill in a form of the API: what is wrong with one is said in the same words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from proxy.cli.output import refuse
from proxy.tenants.form_problems import JSON, describe_problem, find_place

Form = TypeVar("Form", bound=BaseModel)


def read_options(form: type[Form], fields: Mapping[str, Any], options: Mapping[str, str] | None = None) -> Form:
    """Make a form of what options say, or print what is wrong with each and exit.

    Args:
        options: the options of the fields that are not called as theirs, such as `limits.max_tokens`.
    """
    try:
        return form.model_validate(fields)
    except ValidationError as problem:
        refuse([_sentence(error, options or {}) for error in problem.errors()])


def _sentence(error: Any, options: Mapping[str, str]) -> str:
    place, words = find_place(error, ""), describe_problem(error, JSON)
    if not place:
        return words
    field, _, inside = place.partition(".")
    option = options.get(place) or options.get(field) or f"{field.replace('_', '-')}{inside and '.'}{inside}"
    return f"--{option}: {words}"
