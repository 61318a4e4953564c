"""Usage is reported in pages that the database sorts and cuts, on every kind of database."""

from __future__ import annotations

import random

import pytest

from proxy.stores.sql import SqlStores
from proxy.stores.usage import UsageRow
from tests.stores.test_retention import DAY, GROUPS, Population

pytestmark = pytest.mark.anyio
#: Names that a locale would sort otherwise: it takes no account of case, accents and marks at first.
SUBJECTS = ("alice", "Bob", "bob", "_bob", "-bob", "b\u00f6b", "\U0001f600", 'it\'s "me"', "")


@pytest.fixture
async def population(stores: SqlStores) -> Population:
    """Some jobs are counted, and the others settled."""
    dice = random.Random(4)
    population = Population(dice, 150)
    population.jobs = [one._replace(subject=dice.choice(SUBJECTS)) for one in population.jobs]
    by_id = {one.id: one for one in population.jobs}
    population.settled = [by_id[one.id] for one in population.settled]
    await population.write(stores)
    await stores.usage_rollup.count(60)
    return population


@pytest.mark.parametrize("group_by", GROUPS, ids=lambda names: ",".join(sorted(names)) or "nothing")
async def test_pages_have_each_row_once_in_the_order_of_its_names(
    stores: SqlStores, population: Population, group_by: frozenset[str]
) -> None:
    async def read(*after: str, most: int | None = None) -> list[UsageRow]:
        return list(await stores.ledger.usage("acme", None, 0.0, 10.0 * DAY, group_by, after=after, most=most))

    rows = await read()
    assert [row.names for row in rows] == sorted(row.names for row in rows) and rows
    for size in (1, 7, 1000):
        pages = [await read(most=size)]
        while len(pages[-1]) == size and group_by:
            pages.append(await read(*pages[-1][-1].names, most=size))
        assert [row for page in pages for row in page] == rows, size
