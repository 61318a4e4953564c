"""What is wrong with a form, in the words of the text that it was written in. Pydantic's own are those of Python."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple


class FormWords(NamedTuple):
    """What people call the parts of a text, with an article."""

    mapping: str
    list: str


JSON = FormWords("a JSON object", "a JSON array")
YAML = FormWords("a mapping", "a list")
_MAPPINGS = ("model_type", "model_attributes_type", "dict_type")
_LISTS = ("list_type", "tuple_type", "set_type", "frozen_set_type")
#: What Pydantic adds to the way to a value: the branches of `Claim`, and that a key is meant.
_NO_NAME = re.compile(r"constrained-str|tuple\[.*\]|\[key\]")
#: Names on the way to a value: a form has half as many, and documents within one may be deep.
MOST_NAMES = 16
#: Keys that one problem names.
MOST_KEYS = 4


def find_place(error: Any, whole: str) -> str:
    """Join the names on the path to a wrong value; `whole` if the problem is the text itself."""
    names = [name for part in error["loc"] if not _NO_NAME.fullmatch(name := str(part)[:100])]
    return ".".join(names[:MOST_NAMES] + ["…"] * (len(names) > MOST_NAMES)) or whole


def describe_problem(error: Any, words: FormWords, keys: Iterable[str] = ()) -> str:
    """Say what a value should be. `keys` are some that a mapping may have in its place."""
    kind, context = error["type"], error.get("ctx", {})
    if kind in _MAPPINGS:
        named = ", ".join(list(dict.fromkeys(keys))[:MOST_KEYS])
        return f"Input should be {words.mapping}" + (f" with keys such as {named}" if named else "")
    if kind in _LISTS:
        return f"Input should be {words.list}"
    if kind == "too_short":
        return f"Input should have {context['min_length']} or more items"
    if kind == "too_long":
        return f"Input should have {context['max_length']} or fewer items"
    if kind == "string_type" and words is YAML:
        return "Input should be text; put it in quotes if it looks like a number, a date, yes, no or null"
    if kind == "recursion_depth_exceeded":
        return "is nested too deeply"
    if kind == "path_type":
        return "Input should be the path of a file"
    return str(error["msg"]).removeprefix("Value error, ")
