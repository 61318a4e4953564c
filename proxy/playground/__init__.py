"""`fal-proxy dev`: the sandbox, the proxy and a page in one process, for trying things out."""
