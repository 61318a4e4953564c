"""The JSON fuzz, bounded: the same inputs each time."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.fuzz import json


@pytest.fixture(scope="module")
def bench() -> Iterator[json.Bench]:
    with json.bench() as found:
        yield found


def test_lawful_bodies_are_taken(bench: json.Bench) -> None:
    """Otherwise the fuzz would see nothing but refusals."""
    for taking in bench.takings:
        expected = {"complete": {400}}.get(taking.name, {200, 201, 202, 204})
        assert bench.send(taking, taking.body, None).status in expected, taking.name


def test_no_json_breaks_a_route(bench: json.Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    json.run(bench, 20_261_125, 300)
    assert [one.getMessage() for one in caplog.records if one.levelno >= logging.ERROR] == []
