"""SQLite and PostgreSQL from one description."""

from proxy.stores.sql.stores import SqlStores as SqlStores
