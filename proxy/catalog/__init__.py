"""The endpoints that may be called at all, each with its input schema."""

from proxy.catalog.catalog import (
    MAX_PROBLEMS,
    TOKEN_FIELDS,
    Catalog,
    Endpoint,
    app_of,
    built_in,
    endpoint_from,
    queue_names,
)

__all__ = ["MAX_PROBLEMS", "TOKEN_FIELDS", "Catalog", "Endpoint", "app_of", "built_in", "endpoint_from", "queue_names"]
