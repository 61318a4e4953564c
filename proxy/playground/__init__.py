"""The sandbox, the proxy and the page in one process, for trying things out."""
