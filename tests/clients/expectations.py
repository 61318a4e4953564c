"""The input that the tests of all clients send, and the checks of their answers."""

from __future__ import annotations

import base64
import hashlib
import itertools
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from proxy.sandbox.jobs import LOG_LINES
from tests.support.images import PIXEL_PNG

PICTURE = Path(__file__).parents[1] / "pictures" / "chelsea.png"

#: Of the uploads that every client makes, and of those that some make in parts.
SIZES, LARGE_SIZES = (1000, 5_000_000), (95_000_000, 120_000_000)
ENDPOINT = "fal-ai/llava-next"
#: A client meets every state, however seldom it asks.
SLOWLY = "[[pace seconds_per_position=0.3 run_seconds=0.3 wait_for_looks=true]]"
HELD = "[[pace hold=IN_PROGRESS]]"
#: It begins as a PNG does: clients that upload what they are given get it past the look at its first bytes.
BROKEN_PICTURE = "data:image/png;base64,iVBORw0KGgpubyBwaWN0dXJl"


def asked(pace: str = "", **more: Any) -> dict[str, Any]:
    """A model input about the picture; `more` overrides or adds."""
    picture = base64.b64encode(PICTURE.read_bytes()).decode()
    question = {"prompt": f"What is in this picture? {pace}".strip(), "max_tokens": 256}
    return {**question, "image_url": f"data:image/png;base64,{picture}", **more}


def describes_the_picture(text: str) -> bool:
    """Whether an answer was made from the very bytes of the picture."""
    return "PNG picture of 451 × 300 pixels" in text and describes(text, PICTURE)


def describes(text: str, path: Path) -> bool:
    """Whether an answer was made from the very bytes of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] in text


def picture_of(folder: Path, size: int) -> Path:
    """A picture in a file of so many bytes: one pixel, and noise after its end."""
    path = folder / f"{size}.png"
    path.write_bytes(PIXEL_PNG + random.Random(size).randbytes(size - len(PIXEL_PNG)))
    return path


def grows(texts: Sequence[str]) -> bool:
    """Whether each text says more than the one before: how a model streams."""
    return len(texts) > 2 and all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts))


def states(updates: Sequence[Mapping[str, Any]]) -> list[str]:
    """The states in the order in which they came, each once."""
    return [state for state, _ in itertools.groupby(update["status"] for update in updates)]


def messages(update: Mapping[str, Any]) -> list[str]:
    return [log["message"] for log in update["logs"]]


ALL_STATES = ["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]
ALL_LOGS = [f"INFO:{line}" for line in LOG_LINES]


def environment(**more: str) -> dict[str, str]:
    """A process environment with no credentials or hosts for a client but those given."""
    return {name: value for name, value in os.environ.items() if not name.startswith("FAL_")} | more
