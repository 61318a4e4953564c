"""`/console`: the operator's pages, rendered here, for people with an admin token."""
