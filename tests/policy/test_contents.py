"""What the first bytes of a file say, as real pictures and others begin."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from proxy.errors import UnsupportedMediaType
from proxy.policy.contents import HEAD_BYTES, check_head, clean_name

KINDS = {
    "image/png": "PNG",
    "image/jpeg": "JPEG",
    "image/jpg": "JPEG",
    "image/webp": "WEBP",
    "image/gif": "GIF",
    "image/bmp": "BMP",
    "image/tiff": "TIFF",
    "image/avif": "AVIF",
    "image/x-icon": "ICO",
}
HEADS = {
    "video/mp4": b"\0\0\0\x18ftypmp42" + bytes(30),
    "video/quicktime": b"\0\0\0\x14ftypqt  " + bytes(30),
    "video/webm": b"\x1aE\xdf\xa3" + bytes(10) + b"webm" + bytes(30),
    "audio/mpeg": b"ID3\x03" + bytes(40),
    "audio/wav": b"RIFF\0\0\0\0WAVEfmt ",
    "audio/flac": b"fLaC" + bytes(30),
    "audio/ogg": b"OggS\0\x02" + bytes(30),
    "image/heic": b"\0\0\0\x18ftypheic" + bytes(20),
    "application/pdf": b"%PDF-1.7\n",
    "text/csv": b"a,b\n1,2\n",
    "application/json": b'{"a": 1}',
    "application/octet-stream": b"\x7fELF",
}


def picture(form: str) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(file, form)
    return file.getvalue()[:HEAD_BYTES]


@pytest.mark.parametrize(("kind", "form"), KINDS.items())
def test_pictures_are_what_they_say(kind: str, form: str) -> None:
    check_head(picture(form), kind)
    for other in set(KINDS.values()) - {form}:
        with pytest.raises(UnsupportedMediaType):
            check_head(picture(other), kind)


@pytest.mark.parametrize(("kind", "head"), HEADS.items())
def test_other_files_are_too(kind: str, head: bytes) -> None:
    check_head(head, kind)
    if kind != "application/octet-stream":
        with pytest.raises(UnsupportedMediaType):
            check_head(b"MZ\x90\x00" + bytes(100), kind)


@pytest.mark.parametrize("head", [b"", b"RIFF\0\0\0\0WAVEfmt ", b"RIFF", b"RIFF\0\0\0\0<html>"])
def test_a_container_tells_what_it_holds(head: bytes) -> None:
    with pytest.raises(UnsupportedMediaType):
        check_head(head, "image/webp")


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("cat.png", "cat.png"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\cat 1.png", "cat_1.png"),
        (".htaccess", "htaccess"),
        ("..", "file"),
        ("", "file"),
        ("a\0b\r\n.png", "a_b_.png"),
        ("x" * 500 + ".png", "x" * 124 + ".png"),
        ("Кот.png", "_.png"),
    ],
)
def test_a_name_keeps_only_what_is_harmless(name: str, clean: str) -> None:
    assert clean_name(name) == clean
