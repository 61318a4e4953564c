"""The interface of the server and the application for requests that come again byte for byte.

The server hands the bytes of a whole request over in the scope. The application may keep what it found out about them,
and answer the same bytes of the same peer before the server has parsed them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

#: Where the scope of a request has its `WholeRequest`, if it came in one packet (ASGI, "Extensions").
EXTENSION = "proxy.whole_request"
#: In the state of the lifespan: the `AnswerAgain` of the application.
ANSWER_AGAIN = "answer_again"
#: A longer request is not worth the memory.
MOST_BYTES = 4_000


class WholeRequest(NamedTuple):
    """The bytes of a request from its first to its last, and the host of the peer that sent them."""

    data: bytes
    host: str

    def __repr__(self) -> str:
        """Leave out the bytes: they hold a session."""
        return f"WholeRequest({len(self.data)} bytes from {self.host})"


class Answer(NamedTuple):
    """A whole answer.

    Attributes:
        lines: of its head, as `write_lines` writes them; the server adds its own.
    """

    status: int
    lines: bytes
    body: bytes


#: Answers a request that is known, or gives None for one that has to be parsed.
AnswerAgain = Callable[[WholeRequest], Answer | None]
