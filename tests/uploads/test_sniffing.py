"""The type of a file by its first bytes."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from proxy.errors import UnsupportedMediaType
from proxy.tenants.plans import Uploads
from proxy.uploads.sniffing import HEAD_BYTES, allowed_type, check_head, clean_name, guess_type

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
    "image/jp2": "JPEG2000",
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
    "image/jls": b"\xff\xd8\xff\xf7\0\x0b\x08" + bytes(20),
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
def test_pictures_are_recognized(kind: str, form: str) -> None:
    check_head(picture(form), kind)
    for other in set(KINDS.values()) - {form}:
        with pytest.raises(UnsupportedMediaType):
            check_head(picture(other), kind)


@pytest.mark.parametrize(("kind", "head"), HEADS.items())
def test_other_files_are_recognized(kind: str, head: bytes) -> None:
    check_head(head, kind)
    if kind != "application/octet-stream":
        with pytest.raises(UnsupportedMediaType):
            check_head(b"MZ\x90\x00" + bytes(100), kind)


@pytest.mark.parametrize("head", [b"", b"RIFF\0\0\0\0WAVEfmt ", b"RIFF", b"RIFF\0\0\0\0<html>"])
def test_a_riff_file_of_another_kind_is_refused(head: bytes) -> None:
    with pytest.raises(UnsupportedMediaType):
        check_head(head, "image/webp")


def iso_media(*brands: bytes, size: int | None = None) -> bytes:
    """The first box of a file, with its major brand and the compatible ones."""
    body = b"ftyp" + brands[0] + b"\0\0\0\0" + b"".join(brands[1:])
    return (len(body) + 4 if size is None else size).to_bytes(4, "big") + body + b"\0\0\0\x08meta"


@pytest.mark.parametrize(
    ("kind", "brands"),
    [
        ("image/heic", (b"mif1", b"mif1", b"heic")),
        ("image/heif", (b"mif1", b"miaf", b"heix", b"MiHB")),
        ("image/heic", (b"msf1", b"hevc")),
        ("image/heic-sequence", (b"msf1", b"hevc")),
        ("image/heic", (b"heic",)),
        ("image/avif", (b"mif1", b"miaf", b"avif")),
        ("image/avif", (b"msf1", b"avis")),
        ("image/avif", (b"avis",)),
        ("image/avif", (b"mif1", *[b"none"] * 1000, b"avif")),
        ("image/avif", (b"avis", b"msf1", b"iso8")),
    ],
)
def test_any_of_the_brands_identifies_the_type(kind: str, brands: tuple[bytes, ...]) -> None:
    head = iso_media(*brands)
    check_head(head, kind)
    for other in {"image/heic", "image/avif", "image/png", "video/mp4"} - {
        kind.partition("-")[0].replace("heif", "heic")
    }:
        with pytest.raises(UnsupportedMediaType):
            check_head(head, other)


@pytest.mark.parametrize(
    "head",
    [
        iso_media(b"mif1", b"mif1", b"miaf"),
        iso_media(b"isom", b"mp42"),
        iso_media(b"mif1", b"none") + b"avifheic",
        iso_media(b"mif1", b"avif", b"heic", size=2**32 - 1),
        iso_media(b"avif", b"heic", size=0),
        iso_media(b"avif", b"heic", size=15),
        iso_media(b"mif1", b"\0avi", b"f\0he", b"ic\0\0"),
        iso_media(b"mif1", *[b"none"] * 1200, b"avif", b"heic"),
        b"\0\0\0\x10ftypavif",
    ],
)
def test_unknown_brands_and_malformed_boxes_are_not_recognized(head: bytes) -> None:
    for kind in ("image/heic", "image/avif"):
        with pytest.raises(UnsupportedMediaType):
            check_head(head[:HEAD_BYTES], kind)


@pytest.mark.parametrize("head", [b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjpx ", b"\xff\xd8\xff\xf7" + bytes(30)])
def test_what_only_begins_as_a_jpeg_or_is_called_one_is_no_jpeg(head: bytes) -> None:
    """JPEG 2000 and JPEG-LS."""
    with pytest.raises(UnsupportedMediaType):
        check_head(head, "image/jpeg")


FILMS = [
    ("video/mp4", (b"iso5", b"iso6", b"mp41")),
    ("video/mp4", (b"dash", b"iso6")),
    ("video/mp4", (b"avc1", b"isom")),
    ("video/mp4", (b"mp41",)),
    ("video/x-m4v", (b"M4VH", b"M4V ")),
    ("audio/mp4", (b"M4A ", b"isom", b"mp42")),
    ("audio/mp4", (b"iso5", b"hlsf")),
    ("audio/x-m4a", (b"M4A ",)),
    ("video/3gpp", (b"3gp5", b"isom")),
    ("audio/3gpp", (b"3gp4",)),
    ("video/3gpp2", (b"3g2a",)),
    ("video/quicktime", (b"qt  ",)),
    ("video/quicktime", (b"abcd", b"qt  ")),
]


@pytest.mark.parametrize(("kind", "brands"), FILMS)
def test_films_and_sound_are_recognized_by_any_of_their_brands(kind: str, brands: tuple[bytes, ...]) -> None:
    check_head(iso_media(*brands), kind)
    for other in ("image/heic", "image/jpeg", "audio/mpeg"):
        with pytest.raises(UnsupportedMediaType):
            check_head(iso_media(*brands), other)


@pytest.mark.parametrize("brands", [(b"crx ", b"abcd", b"abcd"), (b"qt  ",), (b"3gp5",)])
def test_a_file_without_a_brand_of_mp4_is_none(brands: tuple[bytes, ...]) -> None:
    with pytest.raises(UnsupportedMediaType):
        check_head(iso_media(*brands), "video/mp4")


@pytest.mark.parametrize("start", ["fffb90c4", "fff384c4", "fff344c0", "ffe318c4", "fffa9000"])
def test_sound_of_layer_iii_is_recognized_without_a_tag(start: str) -> None:
    """At low rates, as of speech, a frame does not begin as one of music does."""
    check_head(bytes.fromhex(start) + bytes(100), "audio/mpeg")


@pytest.mark.parametrize("start", ["fff1", "fff1504c", "ffea90c4", "fff3f4c4", "fff304c4", "fff38cc4", "fefb90c4"])
def test_other_bytes_are_no_sound_of_layer_iii(start: str) -> None:
    with pytest.raises(UnsupportedMediaType):
        check_head(bytes.fromhex(start) + bytes(100 if len(start) > 4 else 0), "audio/mpeg")


def test_a_file_without_a_type_gets_the_one_that_its_plan_allows() -> None:
    speech = iso_media(b"M4A ", b"isom")
    for allowed, found in (
        ({"audio/mp4"}, "audio/mp4"),
        ({"audio/mp4", "video/mp4"}, "video/mp4"),
        ({"audio/mp4", "image/png"}, "audio/mp4"),
        ({"image/png"}, None),
        ({"audio/mp4", "application/octet-stream"}, None),
    ):
        assert guess_type(speech, Uploads(content_types=frozenset(allowed))) == found


@pytest.mark.parametrize("head", [b"GIF87a", b"GIF89a"])
def test_both_kinds_of_gif_are_recognized(head: bytes) -> None:
    check_head(head + bytes(20), "image/gif")


@pytest.mark.parametrize("chunk", [b"VP8 ", b"VP8L", b"VP8X"])
def test_every_kind_of_webp_is_recognized(chunk: bytes) -> None:
    check_head(b"RIFF\x24\0\0\0WEBP" + chunk + bytes(20), "image/webp")


NAMES_OF_TYPES = {
    "image/jpeg": ["image/jpg", "image/pjpeg", "IMAGE/JPG", " image/jpg; q=1"],
    "image/png": ["image/x-png", "image/png;charset=utf-8"],
    "image/heic": ["image/heif"],
    "audio/wav": ["audio/x-wav", "audio/vnd.wave"],
    "audio/mp4": ["audio/m4a", "audio/x-m4a"],
    "image/jp2": ["image/jpeg2000"],
}


@pytest.mark.parametrize(("kind", "names"), NAMES_OF_TYPES.items())
def test_a_type_that_a_plan_allows_is_allowed_under_all_its_names(kind: str, names: list[str]) -> None:
    for planned in (kind, *(name for name in names if ";" not in name)):
        plan = Uploads(content_types=frozenset({planned}))
        assert {allowed_type(name, plan) for name in (kind, *names)} == {kind}
        for other in ("", "image/gif", "text/html", "jpg", "image/*", "image/png, image/jpeg"):
            with pytest.raises(UnsupportedMediaType):
                allowed_type(other, plan)


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
def test_a_file_name_keeps_only_harmless_characters(name: str, clean: str) -> None:
    assert clean_name(name) == clean
