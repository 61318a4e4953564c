"""Looking at a picture: bytes in, a description out. Pure and CPU-bound; run it in a thread."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 50_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_SHADES = {
    "black": (0, 0, 0), "dark grey": (64, 64, 64), "grey": (128, 128, 128), "light grey": (192, 192, 192),
    "white": (255, 255, 255), "red": (220, 30, 30), "dark red": (120, 10, 10), "pink": (250, 160, 180),
    "orange": (250, 140, 20), "brown": (110, 65, 30), "reddish brown": (140, 85, 65), "beige": (222, 205, 170),
    "yellow": (245, 225, 40), "olive": (125, 125, 20), "green": (40, 170, 50), "dark green": (15, 80, 25),
    "light green": (150, 230, 150), "turquoise": (50, 200, 190), "dark turquoise": (10, 90, 95),
    "blue": (35, 70, 220), "dark blue": (15, 25, 100), "light blue": (145, 190, 240), "violet": (125, 45, 190),
    "dark violet": (65, 15, 95), "magenta": (225, 40, 200),
}  # fmt: skip
_MEDIUM_FROM, _BRIGHT_FROM = 85, 170


class NotAPicture(ValueError):
    """The bytes are no picture that the model can load; the text says why."""


@dataclass(frozen=True)
class Picture:
    """What was seen: enough for a test to tell that these very bytes arrived."""

    format: str
    width: int
    height: int
    colour: tuple[int, int, int]
    sha256: str

    @property
    def brightness(self) -> int:
        """From 0 to 255, weighted as the eye does (ITU-R 601)."""
        red, green, blue = self.colour
        return round(0.299 * red + 0.587 * green + 0.114 * blue)

    def __str__(self) -> str:
        medium, bright = self.brightness >= _MEDIUM_FROM, self.brightness >= _BRIGHT_FROM
        level = "high" if bright else "medium" if medium else "low"
        return (
            f"A {self.format} picture of {self.width} × {self.height} pixels, "
            f"mostly {_shade(self.colour)} (#{bytes(self.colour).hex()}), "
            f"of {level} brightness ({self.brightness} of 255), sha256 {self.sha256[:16]}."
        )


def look_at(data: bytes) -> Picture:
    """Decode the whole picture, and describe it.

    Raises:
        NotAPicture: no known format, broken, or too many pixels.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise NotAPicture(f"the picture has more than {MAX_PIXELS} pixels")
        red, green, blue = _mean(image)
    except NotAPicture:
        raise
    except UnidentifiedImageError as error:
        raise NotAPicture("no picture in a known format") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise NotAPicture(f"the picture has more than {MAX_PIXELS} pixels") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise NotAPicture("the picture is broken") from error
    digest = hashlib.sha256(data).hexdigest()
    return Picture(image.format or "", image.width, image.height, (red, green, blue), digest)


def _mean(image: Image.Image) -> tuple[int, int, int]:
    """Compute the mean colour of all pixels but transparent ones."""
    if image.mode.startswith("I;16"):  # the one mode that does not convert to colours by itself
        image = image.point(lambda value: value / 256, "L")
    red, green, blue, _ = image.convert("RGBA").resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))  # type: ignore[misc]
    return int(red), int(green), int(blue)


def _shade(colour: tuple[int, int, int]) -> str:
    def distance(name: str) -> int:
        return sum((a - b) ** 2 for a, b in zip(_SHADES[name], colour, strict=True))

    return min(_SHADES, key=distance)
