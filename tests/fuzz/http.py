"""Raw HTTP by a grammar, broken in places: whatever is sent, the server stays whole.

python -m tests.fuzz.http --minutes 10
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable

from tests.server.echo import Echo, echo_server, parse_answers
from tests.server.talk import talk

_METHODS = ("GET", "POST", "PUT", "HEAD", "DELETE", "OPTIONS", "PATCH", "CONNECT", "TRACE", "PRI", "get", "")
_TARGETS = ("/", "/a?b=c", "*", "http://x/", "//x", "/%00", "/\xff", "a:443", "/" + "a" * 9000, "")
_VERSIONS = ("HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/1.2", "http/1.1", "")
_NAMES = (
    "Content-Length",
    "Transfer-Encoding",
    "Connection",
    "Upgrade",
    "Host",
    "Expect",
    "Trailer",
    "X",
    "content-length ",
)
_VALUES = (
    "0",
    "5",
    "05",
    "+5",
    "5, 5",
    "chunked",
    "gzip, chunked",
    "close",
    "upgrade",
    "h2c",
    "100-continue",
    "a\x00b",
    "\xff" * 40,
)
_ENDS = ("\r\n", "\r\n", "\r\n", "\r\n", "\n", "\r", "")
_BODIES = (
    "",
    "hello",
    "5\r\nhello\r\n0\r\n\r\n",
    "5;x\r\nhello\r\n0\r\nA: b\r\n\r\n",
    "fffffffff\r\n",
    "-1\r\n",
    "0\r\n",
)


def make_bytes(draw: random.Random) -> bytes:
    """Up to four requests, most of them nearly right."""
    return b"".join(_request(draw) for _ in range(draw.randint(1, 4)))


def _request(draw: random.Random) -> bytes:
    end = draw.choice(_ENDS) if draw.random() < 0.2 else "\r\n"
    lines = [" ".join((draw.choice(_METHODS), draw.choice(_TARGETS), draw.choice(_VERSIONS)))]
    if draw.random() < 0.9:
        lines.append("Host: x")
    lines += [f"{draw.choice(_NAMES)}: {draw.choice(_VALUES)}" for _ in range(draw.randint(0, 4))]
    data = bytearray((end.join(lines) + end + end + draw.choice(_BODIES)).encode("latin-1"))
    for _ in range(draw.choice((0, 0, 0, 1, 3))):
        data[draw.randrange(len(data))] = draw.randrange(256)
    return bytes(data)


def check(echo: Echo, data: bytes, draw: random.Random) -> None:
    """Send some bytes in random pieces, and hold the server to its promises.

    Raises:
        AssertionError: an answer is broken or a 500, there are more answers than the bytes can hold requests, or the
            server does not answer the next caller.
    """
    cuts = sorted(draw.randrange(len(data) + 1) for _ in range(draw.randint(0, 3)))
    pieces = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    # The answer to a HEAD has a length and no body, so a reader that does not know of it loses its place.
    has_heads = b"HEAD" in data.upper()
    received, _ = talk(echo.port, *pieces, is_enough=lambda answers: has_heads or _statuses(answers) is not None)
    statuses = _statuses(received)
    assert has_heads or statuses is not None, (data, received)
    statuses = statuses or []
    assert 500 not in statuses and len(statuses) <= data.count(b"\n") + 1, (data, received)
    answer, _ = talk(echo.port, b"GET /next HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK"), (data, answer)


def _statuses(answers: bytes) -> list[int] | None:
    """The status of each answer; None if one is not whole."""
    try:
        return [status for status, _, _ in parse_answers(answers)]
    except ValueError:
        return None


def run(seed: int, goes_on: Callable[[int], bool]) -> int:
    """Check one input after the other while `goes_on` says so of their number; how many there were."""
    draw, number = random.Random(seed), 0
    with echo_server() as echo:
        while goes_on(number):
            check(echo, make_bytes(draw), draw)
            echo.requests.clear()
            number += 1
    return number


def main() -> None:
    """Run for some minutes from a fresh seed, which a failure is repeated with."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=time.time_ns())
    given = parser.parse_args()
    print(f"raw HTTP, seed {given.seed}")
    ends_at = time.monotonic() + 60 * given.minutes
    print(f"{run(given.seed, lambda _: time.monotonic() < ends_at)} inputs, no fault")


if __name__ == "__main__":
    main()
