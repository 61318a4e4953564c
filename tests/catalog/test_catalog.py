"""A catalogue that is replaced while others hold it."""

from __future__ import annotations

import pytest

from proxy.catalog import Catalog, endpoint_from, queue_names


def catalog_of(*ids: str) -> Catalog:
    return Catalog(endpoint_from({"id": id_, "input": {"type": "object"}}) for id_ in ids)


def test_a_new_catalogue_forgets_what_was_looked_up_in_the_old_one() -> None:
    catalog = catalog_of("acme/one")
    # A plan that another process has applied already.
    endpoints = frozenset({"acme/one", "acme/two/fast"})
    assert catalog.apps(endpoints) == {"acme/one"}
    catalog.replace(catalog_of("acme/two/fast"))
    assert catalog.apps(endpoints) == {"acme/two"}
    assert catalog.ids() == ["acme/two/fast"]


@pytest.mark.parametrize(
    ("app", "names"),
    [
        ("acme/one", {"acme/one"}),
        ("workflows/acme/one", {"workflows/acme/one", "acme/one", "workflows/acme"}),
        ("comfy/acme/one", {"comfy/acme/one", "acme/one", "comfy/acme"}),
    ],
)
def test_clients_leave_parts_of_an_app_out(app: str, names: set[str]) -> None:
    assert queue_names(app) == names
    assert catalog_of(f"{app}/fast").apps(frozenset({f"{app}/fast"})) == names
