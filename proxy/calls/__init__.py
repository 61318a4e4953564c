"""A call between its route and fal: admission, handlers, idempotency, and the cache of polls."""
