"""The surfaces: each reads its own form of request and writes its own form of response around the same calls."""
