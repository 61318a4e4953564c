"""A proxy with a console, and operators who use it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.console.operators import Operator, new_token, operator_of, revoke_token
from tests.support.limited import limited_proxy, per, plan
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack

PLANS = {
    "acme": plan(
        quotas=[per("tenant", "requests", 100, "month"), per("tenant", "usd", 5), per("subject", "requests", 9)]
    ),
    "globex": plan(),
}
PRICES = [{"id": id_, "price_per_compute_second": 0.001} for id_ in ("fal-ai/llava-next", "fal-ai/llavav15-13b")]


@pytest.fixture(scope="session")
def proxy(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with limited_proxy(shared_sandbox, tmp_path_factory.mktemp("console"), PLANS, endpoints=PRICES) as stack:
        yield stack


@pytest.fixture(autouse=True)
def _next_minute(proxy: Stack) -> None:
    """No test uses up the attempts of another."""
    proxy.clock.advance(61)


@pytest.fixture
def stranger(proxy: Stack) -> Iterator[Operator]:
    with operator_of(proxy, None) as operator:
        yield operator


@pytest.fixture
def admin(proxy: Stack) -> Iterator[Operator]:
    with operator_of(proxy) as operator:
        yield operator


@pytest.fixture
def viewer(proxy: Stack) -> Iterator[Operator]:
    with operator_of(proxy, new_token(proxy, "reader", "viewer")) as operator:
        yield operator
    revoke_token(proxy, "reader")


@pytest.fixture
def night_shift(proxy: Stack) -> Iterator[Operator]:
    """An operator, who is no admin."""
    with operator_of(proxy, new_token(proxy, "night-shift", "operator")) as operator:
        yield operator
    revoke_token(proxy, "night-shift")
