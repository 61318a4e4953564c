"""The surfaces: each parses its own form of request and answers in it; what is done in between is shared."""
