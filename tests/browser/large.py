"""Large pictures, and a line and a phone to send them with."""

from __future__ import annotations

import io
import random
from functools import cache
from typing import Any

from PIL import Image
from playwright.sync_api import Page

PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
#: Slow enough to be watched: a picture of these tests takes about three seconds.
BYTES_PER_SECOND = 500_000


@cache
def noise(seed: int) -> bytes:
    """A PNG of 1.4 MB: noise cannot be made smaller."""
    picture, file = Image.frombytes("RGB", (800, 600), random.Random(seed).randbytes(800 * 600 * 3)), io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def as_file(content: bytes, name: str = "large.png") -> dict[str, object]:
    return {"name": name, "mimeType": "image/png", "buffer": content}


def slow_down(page: Page, bytes_per_second: int = BYTES_PER_SECOND) -> None:
    """Throttle what the page sends, as the developer tools do; -1 is as fast as it goes."""
    devtools = page.context.new_cdp_session(page)
    devtools.send("Network.enable")
    speed = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": bytes_per_second}
    devtools.send("Network.emulateNetworkConditions", speed)
