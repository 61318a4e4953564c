"""Large pictures, a slow connection and a phone to send them with."""

from __future__ import annotations

import io
import random
from functools import cache
from typing import Any

from PIL import Image
from playwright.sync_api import Page

PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
#: A picture of these tests takes three quarters of a minute to send, unless the connection is freed: on a busy
#: machine, too, a test can do something meanwhile.
BYTES_PER_SECOND = 30_000


@cache
def noise(seed: int) -> bytes:
    """A PNG of 1.4 MB: noise cannot be made smaller."""
    picture, file = Image.frombytes("RGB", (800, 600), random.Random(seed).randbytes(800 * 600 * 3)), io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def as_file(content: bytes, name: str = "large.png") -> dict[str, object]:
    return {"name": name, "mimeType": "image/png", "buffer": content}


class SlowLine:
    """The developer tools throttle what a page sends, until the connection is `free`."""

    def __init__(self, page: Page) -> None:
        self._devtools = page.context.new_cdp_session(page)
        self._devtools.send("Network.enable")
        self._allow(BYTES_PER_SECOND)

    def free(self) -> None:
        self._allow(-1)

    def _allow(self, bytes_per_second: int) -> None:
        speed = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": bytes_per_second}
        self._devtools.send("Network.emulateNetworkConditions", speed)
