"""Calls to fal: connections, headers, refusals, circuit breakers, event streams, URLs of files.

Every import of httpx comes through here first. It leaves out httpx's command line, whose terminal library and syntax
highlighter would stay in the memory of an idle process.
"""

import sys

# None stands for a module that is not installed, which httpx allows for.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
