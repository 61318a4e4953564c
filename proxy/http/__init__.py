"""What Starlette lacks: pieces of HTTP that every surface shares."""
