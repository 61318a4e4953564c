"""Alembic's entry: the connection is handed in by `proxy.stores.sql.migrate`, never configured here."""

from alembic import context

from proxy.stores.sql.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite cannot alter a column in place.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
