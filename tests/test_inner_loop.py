"""What `make test-fast` leaves out: the tests that start something for themselves are `slow` without saying so."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.server.commands import Commands, serving
from tests.support.limited import limited_proxy, plan
from tests.support.reach import starts_something
from tests.support.sandbox import SandboxControl, running_sandbox
from tests.support.stack import Stack


@pytest.fixture(scope="module")
def own_sandbox() -> Iterator[SandboxControl]:
    with running_sandbox() as control:
        yield control


@pytest.fixture
def through_another(own_sandbox: SandboxControl) -> SandboxControl:
    return own_sandbox


class Helper:
    def start(self, folder: Path) -> None:
        with serving("serve", environ={}, folder=folder):
            pass


def runs_a_program() -> None:
    subprocess.run([sys.executable, "--version"], check=True)


def starts_a_proxy(shared_sandbox: SandboxControl, tmp_path: Path) -> None:
    with limited_proxy(shared_sandbox, tmp_path, {"acme": plan()}):
        pass


def starts_one_later(shared_sandbox: SandboxControl, tmp_path: Path) -> None:
    def later() -> None:
        starts_a_proxy(shared_sandbox, tmp_path)

    later()


async def runs_a_program_in_a_loop() -> None:
    await (await asyncio.create_subprocess_exec(sys.executable, "--version")).wait()


def asks_a_helper(tmp_path: Path) -> None:
    Helper().start(tmp_path)


@given(st.integers())
def runs_a_program_for_each_example(number: int) -> None:
    runs_a_program()


def runs_a_command(commands: Commands, tmp_path: Path) -> None:
    commands("--version", environ={}, cwd=tmp_path)


def has_a_server(through_another: SandboxControl) -> None:
    through_another.requests()


def calls_the_shared_stack(stack: Stack) -> None:
    stack.client().close()


def computes() -> None:
    assert sum(range(3)) == 3


@pytest.fixture
def as_test(request: pytest.FixtureRequest) -> Callable[[Callable[..., object]], pytest.Function]:
    """Make a function a test of this file, as pytest does when it collects it."""

    def make(function: Callable[..., object]) -> pytest.Function:
        made: pytest.Function = pytest.Function.from_parent(
            request.node.parent, name=function.__name__, callobj=function
        )
        return made

    return make


@pytest.mark.parametrize(
    "function",
    [
        runs_a_program,
        starts_a_proxy,
        starts_one_later,
        runs_a_program_in_a_loop,
        asks_a_helper,
        runs_a_program_for_each_example,
        runs_a_command,
        has_a_server,
    ],
)
def test_what_starts_something_of_its_own_is_found(
    function: Callable[..., object], as_test: Callable[..., pytest.Function]
) -> None:
    assert starts_something(as_test(function))


@pytest.mark.parametrize("function", [calls_the_shared_stack, computes])
def test_the_servers_of_the_whole_run_are_for_every_test(
    function: Callable[..., object], as_test: Callable[..., pytest.Function]
) -> None:
    assert not starts_something(as_test(function))


def test_such_a_test_is_slow(through_another: SandboxControl, request: pytest.FixtureRequest) -> None:
    assert through_another.requests() == []
    assert request.node.get_closest_marker("slow")


def test_one_with_the_shared_stack_is_not(stack: Stack, request: pytest.FixtureRequest) -> None:
    assert not request.node.get_closest_marker("slow")
