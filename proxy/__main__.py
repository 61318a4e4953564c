"""`python -m proxy`, and the command `fal-proxy`."""

from __future__ import annotations

import signal
import sys

from proxy.server.garbage import collections_paused


def run() -> None:
    """Run the command line; a plain `serve`, as the image starts it, without loading the parser and other commands."""
    try:
        if sys.argv[1:] == ["serve"]:
            with collections_paused():
                from proxy.serving import serve
            sys.exit(serve())
        with collections_paused():
            from proxy.cli import main
        main()
    except KeyboardInterrupt:
        # Ctrl+C before the parser or the server heeds it; the parser ends with this code too.
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    run()
