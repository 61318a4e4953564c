"""`python -m proxy`, and the command `fal-proxy`."""

from __future__ import annotations

from proxy.server.garbage import collections_paused


def run() -> None:
    """Run the command line."""
    with collections_paused():
        from proxy.cli import main
    main()


if __name__ == "__main__":
    run()
