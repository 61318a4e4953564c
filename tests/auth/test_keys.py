"""Tenant keys: shown once, kept as a hash, compared whole."""

from __future__ import annotations

import pytest

from proxy.errors import Unauthenticated
from proxy.tenants import keys


def test_a_key_is_known_by_its_hash_only() -> None:
    text, record = keys.make("acme", "backend", now=7.0)
    assert keys.verify(text, {record.id: record}) is record
    secret = text.split("_", 2)[2]
    assert secret not in repr(record) and secret not in record.secret_hash
    assert record.secret_hash not in repr(record)


def test_two_keys_differ() -> None:
    assert keys.make("acme", "", 0)[0] != keys.make("acme", "", 0)[0]


@pytest.mark.parametrize("form", ["{}A", " {}", "{} ", "x{}", "{}\n"])
def test_a_key_with_a_character_more_is_refused(form: str) -> None:
    text, record = keys.make("acme", "", 0)
    with pytest.raises(Unauthenticated):
        keys.verify(form.format(text), {record.id: record})


def test_the_secret_of_another_key_is_refused() -> None:
    (one, record), (other, _) = keys.make("acme", "", 0), keys.make("acme", "", 0)
    mixed = one[: one.index(record.id) + 17] + other.split("_", 2)[2]
    with pytest.raises(Unauthenticated):
        keys.verify(mixed, {record.id: record})


def test_a_key_that_is_not_there_is_refused() -> None:
    with pytest.raises(Unauthenticated):
        keys.verify(keys.make("acme", "", 0)[0], {})
