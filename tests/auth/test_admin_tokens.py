"""How admin tokens are read: seldom, and no request waits twice for a database that does not answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from proxy.auth.admin_tokens import MAX_AGE_SECONDS, RETRY_SECONDS, AdminTokens, Role, TokenHolder
from proxy.errors import StoreUnavailable, Unauthenticated
from proxy.settings import Secret
from proxy.stores.admin_tokens import NamedToken
from proxy.stores.audit import Author
from tests.support.audit_log import AUTHOR
from tests.support.clock import MovableClock

pytestmark = pytest.mark.anyio
SETTING = "a-token-of-the-settings-with-more-than-32-bytes"


class Store:
    """A store that holds tokens in memory, and is slow; while it is down, each reading of it fails."""

    def __init__(self) -> None:
        self.tokens: dict[str, NamedToken] = {}
        self.is_down = False
        self.readings = 0

    async def load(self) -> Sequence[NamedToken]:
        self.readings += 1
        await asyncio.sleep(0.01)
        if self.is_down:
            raise StoreUnavailable("It is down.")
        return list(self.tokens.values())

    async def add(self, token: NamedToken, most: int, *, by: Author) -> bool:
        self.tokens[token.name] = token
        return True

    async def revoke(self, name: str, *, by: Author) -> bool:
        return self.tokens.pop(name, None) is not None


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture
def tokens(store: Store, clock: MovableClock) -> AdminTokens:
    return AdminTokens(Secret(SETTING), store, clock)


async def ask(tokens: AdminTokens, text: str, times: int = 20) -> list[object]:
    asked = (tokens.authenticate([f"Bearer {text}"]) for _ in range(times))
    return list(await asyncio.gather(*asked, return_exceptions=True))


async def make(tokens: AdminTokens, clock: MovableClock) -> str:
    by = Author("token:test", clock.now(), "machine")
    return (await tokens.create("ops", Role.OPERATOR, None, by=by))[0]


async def test_many_requests_read_the_tokens_once(tokens: AdminTokens, store: Store, clock: MovableClock) -> None:
    text = await make(tokens, clock)
    assert await ask(tokens, text) == [TokenHolder("token:ops", Role.OPERATOR, text[4:20])] * 20
    assert store.readings == 1
    clock.advance(MAX_AGE_SECONDS)
    # Another process revokes it.
    await store.revoke("ops", by=AUTHOR)
    assert {type(one) for one in await ask(tokens, text)} == {Unauthenticated}
    assert store.readings == 2


async def test_a_guess_of_another_form_reads_nothing(tokens: AdminTokens, store: Store) -> None:
    for guess in ("", "guess", "fpa_guess", f"fpk_{'0' * 16}_{'a' * 43}", SETTING[:-1]):
        assert {type(one) for one in await ask(tokens, guess)} == {Unauthenticated}
    assert await ask(tokens, SETTING, 1) == [TokenHolder("PROXY_ADMIN_TOKEN", Role.ADMIN)]
    assert store.readings == 0


async def test_a_database_that_does_not_answer_is_asked_once_in_a_while(
    tokens: AdminTokens, store: Store, clock: MovableClock
) -> None:
    text = await make(tokens, clock)
    store.is_down = True
    assert {type(one) for one in await ask(tokens, text)} == {StoreUnavailable}
    assert store.readings == 1
    clock.advance(RETRY_SECONDS)
    store.is_down = False
    assert await ask(tokens, text, 2) == [TokenHolder("token:ops", Role.OPERATOR, text[4:20])] * 2
    assert store.readings == 2
