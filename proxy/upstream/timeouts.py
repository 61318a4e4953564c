"""How long fal may be silent, by the kind of call."""

from __future__ import annotations

from dataclasses import dataclass

from proxy.targets import Kind
from proxy.upstream.relay import HEAD_SECONDS


@dataclass(frozen=True)
class Timeouts:
    """Seconds for each phase of a call.

    From `read` on they are the longest silence of fal's for a kind of call, never a total: no live stream is cut.
    """

    connect: float = 5.0
    pool: float = 5.0
    write: float = 30.0
    read: float = 30.0
    result: float = 60.0
    #: A file store may examine a large file for a while before it answers.
    file: float = 120.0
    #: A run is silent until the model is done.
    run: float = 600.0
    stream: float = 120.0
    #: fal pings every 15 seconds.
    status_stream: float = 20.0
    #: After this the head of a model's stream goes to the caller, whether or not fal has answered.
    stream_head: float = HEAD_SECONDS

    def for_kind(self, kind: Kind) -> dict[str, float]:
        """Return the timeouts of a kind of call as `transport.py` takes them."""
        read: float = getattr(self, kind.value, self.read)
        return {"connect": self.connect, "pool": self.pool, "write": self.write, "read": read}
