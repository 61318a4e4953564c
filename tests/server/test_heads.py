"""How the head of an answer begins."""

from __future__ import annotations

from proxy.server.heads import begin_head


def test_a_head_begins_with_the_headers_of_its_moment() -> None:
    """They are written once for as long as they are the same object, as uvicorn replaces its list each second."""
    first, second = ([(b"date", b"Fri, 27 Nov 2026 03:00:0%d GMT" % second)] for second in (1, 2))
    for headers, second_ in ((first, b"1"), (first, b"1"), (second, b"2"), (first, b"1")):
        for status, line in ((200, b"HTTP/1.1 200 OK"), (202, b"HTTP/1.1 202 Accepted")):
            expected = line + b"\r\ndate: Fri, 27 Nov 2026 03:00:0" + second_ + b" GMT"
            assert begin_head(status, headers) == expected
