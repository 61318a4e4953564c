"""Whether events arrive when they are sent."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

from proxy.cli.doctor.findings import FAIL, OK, WARN, Finding
from proxy.cli.doctor.visit import Visit, describe

#: A job that is over sooner shows nothing.
SHORTEST_SECONDS = 1.0
#: Events that arrive within this share of the time at its end were held back.
LAST_SHARE = 0.1
#: The proxy sends a comment every five seconds.
LONGEST_PAUSE_SECONDS = 12.0
#: What is not over by then is left.
LONGEST_SECONDS = 600.0
_UNBUFFERED = (
    "Turn buffering and compression off for event streams (nginx: proxy_buffering off, and do not ignore "
    "X-Accel-Buffering; a CDN: no transformation of text/event-stream)."
)


def check_stream(visit: Visit, endpoint: str, input_: dict[str, Any]) -> Finding:
    """Run one job, and see when its events arrive."""
    started, arrivals, text = time.monotonic(), list[float](), b""
    wanted = {"endpoint": endpoint, "input": input_}
    with visit.open_stream("/v1/jobs", json=wanted, headers={"accept": "text/event-stream"}) as answer:
        kind, coding = answer.headers.get("content-type", ""), answer.headers.get("content-encoding")
        if answer.status_code != 200 or not kind.startswith("text/event-stream"):
            answer.read()
            advice = "Call an endpoint that the session may call, with --input for what it needs."
            return Finding("stream", FAIL, f"no event stream: {describe(answer)}", advice)
        for piece in answer.iter_bytes():
            arrivals.append(time.monotonic() - started)
            text = (text + piece)[-65_536:]
            if arrivals[-1] > LONGEST_SECONDS:
                break
    if coding is not None:
        return Finding("stream", FAIL, f"the stream is compressed ({coding})", _UNBUFFERED)
    if b"event: result" not in text and b"event: error" not in text:
        advice = "Let streams stay open: raise the read timeout of what stands in between (nginx: proxy_read_timeout)."
        return Finding("stream", FAIL, f"the stream broke off after {arrivals[-1] if arrivals else 0:.1f} s", advice)
    return _judge(arrivals)


def _judge(arrivals: list[float]) -> Finding:
    first, whole = arrivals[0], arrivals[-1]
    pauses = [later - earlier for earlier, later in pairwise(arrivals)]
    message = (
        f"first event after {first:.2f} s, {len(arrivals)} pieces in {whole:.1f} s, "
        f"longest pause {max(pauses, default=0):.1f} s"
    )
    if whole < SHORTEST_SECONDS:
        return Finding("stream", WARN, message, "The job was over too soon to tell; use an input that takes seconds.")
    if whole - first < LAST_SHARE * whole:
        return Finding("stream", FAIL, f"the events are held back until the end: {message}", _UNBUFFERED)
    if max(pauses, default=0) > LONGEST_PAUSE_SECONDS:
        return Finding("stream", WARN, f"comments are held back: {message}", _UNBUFFERED)
    return Finding("stream", OK, message)
