"""How fast the sandbox works: one frozen value, changed for all coming jobs or for one.

A prompt chooses for its own job with `[[pace name=value name=value]]`, for example
`[[pace queue_positions=5 run_seconds=3]]` or `[[pace hold=IN_QUEUE]]`; `POST /_sandbox/pace` takes the same names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

IN_QUEUE, IN_PROGRESS, COMPLETED = STATES = ("IN_QUEUE", "IN_PROGRESS", "COMPLETED")
MAX_POSITIONS = 10_000


@dataclass(frozen=True)
class Timing:
    """The speeds of one job.

    Attributes:
        queue_positions: how many places a submitted job waits through: 2 shows positions 1 and 0.
        start_seconds: how long a direct run or stream waits for a free runner.
        hold: `IN_QUEUE` or `IN_PROGRESS`: stay in that state until `POST /_sandbox/jobs/{id}` says otherwise.
        wait_for_looks: a submitted job leaves no step before a status request or a stream has shown it, and stays for
            the step's whole time after that, so that a client meets every step, however slow its machine is.
        heeds_cancel: whether the running model stops when asked; at fal not every app does.
        upload_seconds: how long a signed upload URL is good for.
    """

    queue_positions: int = 2
    seconds_per_position: float = 0.05
    start_seconds: float = 0.0
    run_seconds: float = 0.2
    words_per_second: float = 200.0
    ping_seconds: float = 15.0
    hold: str = ""
    wait_for_looks: bool = False
    heeds_cancel: bool = True
    upload_seconds: float = 3600.0

    def __post_init__(self) -> None:
        if self.hold not in ("", IN_QUEUE, IN_PROGRESS):
            raise ValueError(f"hold is {IN_QUEUE} or {IN_PROGRESS}, not {self.hold!r}")
        if not 0 <= self.queue_positions <= MAX_POSITIONS:
            raise ValueError(f"queue_positions lies between 0 and {MAX_POSITIONS}")
        if self.words_per_second <= 0 or self.ping_seconds <= 0:
            raise ValueError("words_per_second and ping_seconds are above 0")

    def override(self, values: Mapping[str, Any]) -> Timing:
        """Return this timing with some values changed, from JSON or from the words of a directive.

        Raises:
            ValueError: an unknown name, or a value that does not fit.
        """
        types = {field.name: type(field.default) for field in fields(self)}
        if unknown := set(values) - set(types):
            raise ValueError(f"no such pace: {', '.join(sorted(unknown))}; there is {', '.join(types)}")
        return replace(self, **{name: _as(types[name], value) for name, value in values.items()})


def _as(kind: type, value: Any) -> Any:
    if kind is bool and isinstance(value, str):
        return value.lower() not in ("0", "false", "no", "")
    return kind(value)
