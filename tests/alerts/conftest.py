"""The stores on every kind of database."""

from tests.stores.conftest import open_stores, stores

__all__ = ["open_stores", "stores"]
