"""The sandbox reads real pictures, and refuses other files."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib

import pytest
from PIL import Image

from proxy.sandbox.vision import NotAPicture, look_at
from tests.sandbox.conftest import CHELSEA, PICTURES


@pytest.mark.parametrize(
    ("name", "format", "size"),
    [
        ("chelsea.png", "PNG", (451, 300)),
        ("rocket.jpg", "JPEG", (640, 427)),
        ("astronaut.jpg", "JPEG", (512, 512)),
    ],
)
def test_photographs_are_seen_as_they_are(name: str, format: str, size: tuple[int, int]) -> None:
    data = (PICTURES / name).read_bytes()
    picture = look_at(data)
    assert (picture.format, picture.width, picture.height) == (format, *size)
    assert picture.sha256 == hashlib.sha256(data).hexdigest()
    assert str(picture).startswith(f"A {format} picture of {size[0]} × {size[1]} pixels, mostly ")
    assert f"sha256 {picture.sha256[:16]}" in str(picture)


@pytest.mark.parametrize(
    ("colour", "shade", "level"),
    [((255, 255, 255), "white", "high"), ((10, 10, 10), "black", "low"), ((220, 20, 40), "red", "low"),
     ((120, 120, 120), "grey", "medium"), ((20, 160, 40), "green", "medium")],
)  # fmt: skip
def test_colours_and_brightness_have_names(colour: tuple[int, int, int], shade: str, level: str) -> None:
    seen = str(look_at(_encode(Image.new("RGB", (8, 8), colour))))
    assert f"mostly {shade} (#{bytes(colour).hex()}), of {level} brightness" in seen


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_every_kind_of_png_can_be_seen(mode: str) -> None:
    assert look_at(_encode(Image.new(mode, (3, 2)))).colour == (0, 0, 0)


def test_sixteen_bit_greys_keep_their_brightness() -> None:
    assert look_at(_encode(Image.new("I;16", (3, 2), 65535))).brightness == 255


def test_transparent_pixels_have_no_colour() -> None:
    image = Image.new("RGBA", (2, 1), (0, 255, 0, 0))
    image.putpixel((0, 0), (200, 0, 0, 255))
    red, green, blue = look_at(_encode(image)).colour
    assert (abs(red - 200) <= 1, green, blue) == (True, 0, 0)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "known format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "known format"),
        (b"no picture at all", "known format"),
        (CHELSEA[:2000], "broken"),
        (CHELSEA[:40], "broken|known format"),
    ],
)
def test_a_file_that_is_no_picture_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(NotAPicture, match=reason):
        look_at(data)


@pytest.mark.parametrize("side", [7_100, 9_500, 13_400, 2**31 - 1])
def test_a_decompression_bomb_is_refused_by_its_header_alone(side: int) -> None:
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    pixels = b"IDAT" + zlib.compress(b"")
    bomb += struct.pack(">I", len(pixels) - 4) + pixels + struct.pack(">I", zlib.crc32(pixels))
    with pytest.raises(NotAPicture, match="pixels"):
        look_at(bomb)


def _encode(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
