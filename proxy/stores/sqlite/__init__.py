"""A SQLite file: where it is, who writes to it, and what the ledger says to it."""
