"""Each flaw's test runs one check on this proxy, which must pass it, and on the official one, which must not.

The official proxy's failure is itself asserted, with its symptom: once a release of it passes a check, that test goes
red, and `docs/comparison.md` has to be brought up to date.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.comparison.contestants import Contestant, FalProxy, Officials
from tests.comparison.entrants import WHOLE_KEY, Entrant
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack, proxy_in_front_of

Contest = Callable[[], AbstractContextManager[Contestant]]


@pytest.fixture(scope="session")
def officials(shared_sandbox: SandboxControl) -> Iterator[Officials]:
    with contextlib.closing(Officials(shared_sandbox.url)) as processes:
        yield processes


@pytest.fixture
def contest(request: pytest.FixtureRequest, stack: Stack, officials: Officials, tmp_path: Path) -> Contest:
    """A block in which the entrant is there to be checked, and which fails exactly if it has to."""
    entrant: Entrant = request.param

    @contextlib.contextmanager
    def checked() -> Iterator[Contestant]:
        running = officials.running(entrant) if entrant.adapter else _fal_proxy(entrant, stack, tmp_path)
        with running as contestant, _expect_failure(entrant.symptom):
            yield contestant

    return checked


@contextlib.contextmanager
def _fal_proxy(entrant: Entrant, stack: Stack, folder: Path) -> Iterator[Contestant]:
    if entrant.key == WHOLE_KEY:
        yield FalProxy(stack)
        return
    with proxy_in_front_of(stack.sandbox, folder, environ={"FAL_KEY": "", **entrant.key}) as own:
        yield FalProxy(own)


@contextlib.contextmanager
def _expect_failure(symptom: str) -> Iterator[None]:
    if not symptom:
        yield
        return
    try:
        yield
    except AssertionError as failure:
        if symptom not in str(failure):
            raise
    else:
        pytest.fail("the official proxy passes this check now: bring docs/comparison.md up to date")
