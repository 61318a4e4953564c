"""Pictures with private metadata, and what the bytes of a picture contain."""

from __future__ import annotations

import io
import secrets
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image, ImageCms

PICTURES = Path(__file__).parents[1] / "pictures"
#: Stands in every kind of metadata of a private picture.
MARK = b"Eileen-at-home"
#: 52° 31' 12" N, 13° 24' 18" E, as EXIF writes the rational numbers of it, in both orders of bytes.
LATITUDE = (52.0, 31.0, 12.0)
_GPS = [struct.pack(f"{order}6I", 52, 1, 31, 1, 12, 1) for order in "<>"]
_ORIENTATION, _MAKE, _GPS_IFD, _EXIF_IFD, _MAKER_NOTE = 0x0112, 0x010F, 0x8825, 0x8769, 0x927C
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF>' + MARK + b"</rdf:RDF></x:xmpmeta>"
#: What a JPEG, a PNG and a WebP need to show their pixels.
NEEDED = {
    "JPEG": {"SOI", "APP0", "DQT", "SOF0", "DHT", "SOS", "EOI"},
    "PNG": {"IHDR", "PLTE", "tRNS", "IDAT", "IEND"},
    "WEBP": {"VP8 ", "VP8L", "VP8X", "ALPH"},
}


def photograph(size: tuple[int, int] = (64, 40)) -> Image.Image:
    """A real photograph, whose upper left corner is red so that its orientation shows."""
    with Image.open(PICTURES / "astronaut.jpg") as picture:
        small = picture.convert("RGB").resize(size)
    small.paste((255, 0, 0), (0, 0, size[0] // 2, size[1] // 2))
    return small


def private_picture(kind: str, picture: Image.Image | None = None, *, orientation: int = 6) -> bytes:
    """A picture with all that its format can say: place, camera, maker's note, XMP, comment, profile, appendix."""
    picture = picture or photograph()
    written = io.BytesIO()
    picture.save(written, kind, **_metadata(kind, orientation))
    data = written.getvalue() + MARK
    assert MARK in data and (kind in ("GIF", "BMP") or any(place in data for place in _GPS))
    return data


def _metadata(kind: str, orientation: int) -> dict[str, Any]:
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    exif[_MAKE] = MARK.decode()
    exif.get_ifd(_GPS_IFD).update({1: "N", 2: LATITUDE, 3: "E", 4: (13.0, 24.0, 18.0)})
    exif.get_ifd(_EXIF_IFD)[_MAKER_NOTE] = MARK * 3
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    named = {"exif": exif, "icc_profile": profile}
    return {"GIF": {"comment": MARK}, "BMP": {}, "JPEG": {"xmp": XMP, "comment": MARK, **named}}.get(
        kind, {"xmp": XMP, **named}
    )


def is_private(data: bytes) -> bool:
    """Whether the bytes of a file say where or by whom it was taken."""
    return MARK in data or any(place in data for place in _GPS)


def segments(kind: str, data: bytes) -> list[str]:
    """The names of the segments of a JPEG, or of the chunks of a PNG or WebP, as they stand in the bytes."""
    return list({"JPEG": _jpeg_segments, "PNG": _png_chunks, "WEBP": _webp_chunks}[kind](data))


def _jpeg_segments(data: bytes) -> Iterator[str]:
    names = {
        0xC0: "SOF0",
        0xC4: "DHT",
        0xDB: "DQT",
        0xDA: "SOS",
        0xFE: "COM",
        **{0xE0 + n: f"APP{n}" for n in range(16)},
    }
    assert data[:2] == b"\xff\xd8"
    yield "SOI"
    at = 2
    while True:
        assert data[at] == 0xFF
        name = names.get(data[at + 1], hex(data[at + 1]))
        yield name
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if name == "SOS":
            assert data.endswith(b"\xff\xd9") and data.index(b"\xff\xd9", at) == len(data) - 2
            yield "EOI"
            return


def _png_chunks(data: bytes) -> Iterator[str]:
    at = 8
    while at < len(data):
        yield data[at + 4 : at + 8].decode("latin-1")
        at += 12 + int.from_bytes(data[at : at + 4], "big")


def _webp_chunks(data: bytes) -> Iterator[str]:
    assert int.from_bytes(data[4:8], "little") + 8 == len(data)
    at = 12
    while at < len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        yield data[at : at + 4].decode("latin-1")
        at += 8 + size + size % 2


def bomb(width: int, height: int) -> bytes:
    """A PNG of black pixels: a thousandth of what it is unpacked."""
    return _png(width, height, zlib.compress(bytes((width * 4 + 1) * height), 1))


def noise(width: int, height: int) -> bytes:
    """A PNG of random pixels, written as they are: to compress them takes most time of all pictures of this size."""
    rows = b"".join(b"\0" + secrets.token_bytes(width * 4) for _ in range(height))
    return _png(width, height, zlib.compress(rows, 0))


def _png(width: int, height: int, pixels: bytes) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", pixels), (b"IEND", b"")]
    chunks = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def several(kind: str) -> bytes:
    """A picture that is animated, or has several pages."""
    written = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    frames[0].save(written, kind, save_all=True, append_images=frames[1:])
    return written.getvalue()
