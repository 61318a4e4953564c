"""Write a picture again, with its pixels and nothing else. A process of its own runs this file for each picture.

It reads the picture from its standard input and writes it to its standard output. It exits with `REFUSED` if it cannot
do that, and says why on its standard error. This file imports nothing of the program, so that it starts fast.
"""

from __future__ import annotations

import base64
import contextlib
import io
import math
import resource
import sys
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote_to_bytes

from PIL import Image, ImageOps, UnidentifiedImageError

REFUSED = 3
#: The largest cameras of phones make 50 million pixels, in rows of whole blocks.
MAX_PIXELS = 51_000_000
Form = Literal["raw", "base64", "percent"]
#: How each format is written; a model sees no difference at this quality.
_OPTIONS: dict[str, dict[str, object]] = {
    "JPEG": {"quality": 90},
    # A third of the time that the default takes, for a few per cent more bytes.
    "PNG": {"compress_level": 4},
    "WEBP": {"quality": 90},
}
#: The modes that a profile is applied to, each with the mode of its result.
_PROFILED = {"RGB": "RGB", "RGBA": "RGBA", "CMYK": "RGB", "L": "RGB"}


class Refusal(Exception):
    """A picture cannot be written again; says why."""


@dataclass(frozen=True)
class Order:
    """What is to be done.

    Attributes:
        kind: Pillow's name of the format that the picture has and keeps.
        form: how the bytes are written; the result is raw, or else in base64.
        max_bytes: the most that the result may have, raw.
        max_pixels: the most that the result may have; 0 for any number.
    """

    kind: str
    form: Form
    max_bytes: int
    max_pixels: int = 0


def rewrite(data: bytes, order: Order) -> bytes:
    """Write a picture again.

    Raises:
        Refusal: it cannot be read, or is too large.
    """
    try:
        picture = _open(_unwrap(data, order.form), order.kind)
        picture = _shrink(picture, order.max_pixels)
        picture = _in_srgb(_upright(picture))
        written = _write(picture, order.kind)
    except Refusal:
        raise
    except UnidentifiedImageError:
        raise Refusal(f"it is no {order.kind} picture") from None
    except MemoryError:
        raise Refusal("it takes too much memory") from None
    except Exception:
        # Decoders raise errors of many kinds for broken pictures.
        raise Refusal("it is broken") from None
    if len(written) > order.max_bytes:
        raise Refusal(f"without its metadata it is written in more than {order.max_bytes} bytes; send a smaller one")
    return written if order.form == "raw" else base64.b64encode(written)


def _unwrap(data: bytes, form: Form) -> bytes:
    if form == "raw":
        return data
    data = unquote_to_bytes(data)
    # As browsers do (https://infra.spec.whatwg.org/#forgiving-base64-decode): without white space, padded or not.
    return base64.b64decode(b"".join(data.split()).rstrip(b"=") + b"==") if form == "base64" else data


def _open(data: bytes, kind: str) -> Image.Image:
    picture = Image.open(io.BytesIO(data), formats=[kind])
    if picture.width * picture.height > MAX_PIXELS:
        raise Refusal(f"it has more than {MAX_PIXELS // 1_000_000} million pixels")
    # Phones add previews and depth maps to a JPEG as more pictures; only the first one is kept.
    if getattr(picture, "n_frames", 1) > 1 and picture.format != "MPO":
        raise Refusal("it is animated, or has several pages; send one picture")
    return picture


def _shrink(picture: Image.Image, max_pixels: int) -> Image.Image:
    pixels = picture.width * picture.height
    if not max_pixels or pixels <= max_pixels:
        return picture
    scale = math.sqrt(max_pixels / pixels)
    box = [min(max_pixels, max(1, int(side * scale))) for side in picture.size]
    if picture.mode not in ("L", "RGB", "RGBA", "CMYK"):
        picture = _in_full_colour(picture)
    picture.thumbnail((box[0], box[1]), Image.Resampling.LANCZOS, reducing_gap=2.0)
    return picture


def _in_full_colour(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):
        # The one mode whose values are cut off, and not scaled.
        return picture.point(lambda value: value / 256).convert("L")
    return picture.convert("RGBA" if picture.has_transparency_data else "RGB")


def _upright(picture: Image.Image) -> Image.Image:
    """Copy a picture, turned as its EXIF data says; the copy has no format and no metadata."""
    try:
        return ImageOps.exif_transpose(picture)
    except SyntaxError:
        # This is no EXIF data: viewers show the picture as it is.
        return picture.copy()


def _in_srgb(picture: Image.Image) -> Image.Image:
    """Convert a picture to sRGB, which is meant without a profile: a profile can name the camera or the program."""
    profile = picture.info.get("icc_profile")
    if profile and picture.mode == "P":
        picture = _in_full_colour(picture)
    if profile and picture.mode in _PROFILED:
        # Imported here: most pictures have no profile.
        from PIL import ImageCms

        # A profile that cannot be used is left out, as browsers do.
        with contextlib.suppress(ImageCms.PyCMSError, OSError):
            source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(picture, source, target, outputMode=_PROFILED[picture.mode])
            picture = converted or picture
    return picture.convert("RGB") if picture.mode == "CMYK" else picture


def _write(picture: Image.Image, kind: str) -> bytes:
    # Some formats write what they find here, or in attributes that only an opened picture has.
    transparency = picture.info.get("transparency")
    picture.info = {} if transparency is None else {"transparency": transparency}
    written = io.BytesIO()
    picture.save(written, kind, **_OPTIONS.get(kind, {}))
    return written.getvalue()


def main() -> None:
    """Do what the arguments say, within the bounds of processor time and memory that they name."""
    cpu_seconds, memory_bytes, kind, form, max_bytes, max_pixels = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_seconds), int(cpu_seconds)))
    resource.setrlimit(resource.RLIMIT_DATA, (int(memory_bytes), int(memory_bytes)))
    # `_open` counts the pixels.
    Image.MAX_IMAGE_PIXELS = None
    try:
        order = Order(kind, form, int(max_bytes), int(max_pixels))  # type: ignore[arg-type]
        written = rewrite(sys.stdin.buffer.read(), order)
    except Refusal as refusal:
        print(refusal, file=sys.stderr)
        sys.exit(REFUSED)
    sys.stdout.buffer.write(written)


if __name__ == "__main__":
    main()
