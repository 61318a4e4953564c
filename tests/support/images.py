"""Small pictures."""

from __future__ import annotations

import base64
import random

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: A whole PNG of one pixel.
PIXEL_PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)
#: The same as a data URI.
PIXEL = f"data:image/png;base64,{base64.b64encode(PIXEL_PNG).decode()}"


def png(size: int) -> bytes:
    """So many bytes that begin as a picture does, and go on with noise."""
    return (PNG_SIGNATURE + random.Random(size).randbytes(size))[:size]
