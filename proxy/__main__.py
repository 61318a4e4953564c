"""`python -m proxy`, and the command `fal-proxy`."""

from __future__ import annotations

import sys

from proxy.server.garbage import collections_paused


def run() -> None:
    """Run the command line; a plain `serve`, as the image starts it, without loading the parser and other commands."""
    if sys.argv[1:] == ["serve"]:
        with collections_paused():
            from proxy.serving import serve
        sys.exit(serve())
    with collections_paused():
        from proxy.cli import main
    main()


if __name__ == "__main__":
    run()
