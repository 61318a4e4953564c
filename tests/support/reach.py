"""What a test starts, as its code says: the code is read, and nothing of it runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import cache
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest

#: Where what starts processes is from, and what starts servers.
_PROCESSES, _SERVERS = {"subprocess", "asyncio.subprocess", "multiprocessing"}, {"uvicorn"}
#: Scopes of the fixtures that a whole run pays for once.
_SHARED = ("session", "package")


def starts_something(test: pytest.Function) -> bool:
    """Whether a test starts a process, or a server for itself or its file alone.

    The servers that the tests of a run share are none of that; a process is, as its users start others by it.
    """
    fixtures = [found[-1] for name in test.fixturenames if (found := test._fixtureinfo.name2fixturedefs.get(name))]
    own = [test.function, *(fixture.func for fixture in fixtures if fixture.scope not in _SHARED)]
    shared = [fixture.func for fixture in fixtures if fixture.scope in _SHARED]
    return any(modules_of(one) & (_PROCESSES | _SERVERS) for one in own) or any(
        modules_of(one) & _PROCESSES for one in shared
    )


@cache
def modules_of(function: Callable[..., Any]) -> frozenset[str]:
    """Name the modules and packages of all that a function reaches."""
    names = {_module_of(one) for one in reached_by(function)}
    return frozenset(names | {name.partition(".")[0] for name in names})


@cache
def reached_by(function: Callable[..., Any]) -> frozenset[Any]:
    """The functions, classes and modules that a function names, and in turn those that they name.

    Only the tests' own are looked into. What an object of the tests is asked to do is not followed; its class is.
    """
    found: set[Any] = set()
    left: list[Any] = [function]
    while left:
        one = left.pop()
        if one not in found:
            found.add(one)
            left += _named_by(one)
    return frozenset(found)


@cache
def _named_by(what: Any) -> list[Any]:
    if not _module_of(what).startswith("tests."):
        return []
    if inspect.isclass(what):
        return [*what.__bases__, *(part for part in vars(what).values() if isinstance(part, FunctionType))]
    if (given := getattr(what, "hypothesis", None)) is not None:
        return [given.inner_test]
    function = inspect.unwrap(what)
    if not isinstance(function, FunctionType):
        return []
    names = {name for code in _codes_in(function.__code__) for name in code.co_names}
    values = [function.__globals__[name] for name in names if name in function.__globals__]
    values += [
        vars(value)[name] for value in values if isinstance(value, ModuleType) for name in names & vars(value).keys()
    ]
    return [value for value in values if isinstance(value, (FunctionType, ModuleType, type))]


def _module_of(what: Any) -> str:
    return what.__name__ if isinstance(what, ModuleType) else getattr(what, "__module__", None) or ""


def _codes_in(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes_in(constant)
