"""A picture that is written again has the same pixels, and nothing else."""

from __future__ import annotations

import base64
import io
import urllib.parse
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageCms, ImageStat

from proxy.pictures.cleaner import KINDS
from proxy.pictures.decoding import MAX_PIXELS, Order, Refusal, rewrite
from tests.support.private_pictures import (
    MARK,
    NEEDED,
    bomb,
    is_private,
    photograph,
    private_picture,
    segments,
    several,
)

MOST = 10**8
#: Modes that the pictures of each format come in.
MODES = [
    *(("JPEG", mode) for mode in ("RGB", "L", "CMYK")),
    *(("PNG", mode) for mode in ("RGB", "RGBA", "P", "L", "LA", "1", "I;16")),
    *(("WEBP", mode) for mode in ("RGB", "RGBA")),
    *(("GIF", mode) for mode in ("P", "L")),
    *(("BMP", mode) for mode in ("RGB", "L", "1")),
]


def read(data: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(data))
    picture.load()
    return picture


def in_mode(mode: str) -> Image.Image:
    if mode == "I;16":
        return photograph().convert("L").convert("I").point(lambda value: value * 257).convert("I;16")
    return photograph().convert(mode)


def seen(picture: Image.Image) -> Image.Image:
    """A picture as its viewer sees it."""
    if picture.mode == "I;16":
        picture = picture.point(lambda value: value / 256).convert("L")
    return picture.convert("RGB")


def difference(one: Image.Image, other: Image.Image) -> float:
    """The mean difference of two pictures, of 255."""
    return max(ImageStat.Stat(ImageChops.difference(seen(one), seen(other))).mean)


@pytest.mark.parametrize(("kind", "mode"), MODES)
def test_only_the_pixels_are_left(kind: str, mode: str) -> None:
    picture = in_mode(mode)
    upright = 1 if kind in ("GIF", "BMP") else 6
    data = private_picture(kind, picture, orientation=upright)
    written = rewrite(data, Order(kind, "raw", MOST))
    assert is_private(data) and not is_private(written)
    again = read(written)
    assert again.format == kind and not again.info.get("icc_profile") and not again.info.get("exif")
    assert set(segments(kind, written)) <= NEEDED[kind] if kind in NEEDED else b"sRGB" not in written
    expected = picture if upright == 1 else picture.transpose(Image.Transpose.ROTATE_270)
    assert again.size == expected.size
    assert difference(again, expected) < 12


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("max_pixels", [0, 640])
def test_a_rotated_picture_stands_as_viewers_show_it(kind: str, orientation: int, max_pixels: int) -> None:
    turned = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    expected = photograph() if orientation == 1 else photograph().transpose(turned[orientation])
    again = read(rewrite(private_picture(kind, orientation=orientation), Order(kind, "raw", MOST, max_pixels)))
    assert (again.width > again.height) == (expected.width > expected.height)
    assert difference(again.convert("RGB").resize(expected.size), expected) < 20


@pytest.mark.parametrize(("kind", "mode"), MODES)
@pytest.mark.parametrize(
    ("size", "most"), [((64, 40), 640), ((64, 40), 1), ((2000, 1), 100), ((1, 2000), 7), ((3, 3), 8)]
)
def test_a_picture_is_scaled_to_the_pixels_of_the_plan(kind: str, mode: str, size: tuple[int, int], most: int) -> None:
    data = private_picture(kind, in_mode(mode).resize(size), orientation=1)
    again = read(rewrite(data, Order(kind, "raw", MOST, most)))
    assert 0 < again.width * again.height <= most
    if (size, most) == ((64, 40), 640):
        assert again.size == (32, 20)
        assert mode == "1" or difference(again.convert("RGB").resize((64, 40)), seen(in_mode(mode))) < 25


def test_a_picture_that_is_small_enough_keeps_its_size() -> None:
    assert read(rewrite(private_picture("PNG", orientation=1), Order("PNG", "raw", MOST, 64 * 40))).size == (64, 40)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP"])
@pytest.mark.parametrize("most", [0, 640])
def test_transparency_stays(kind: str, most: int) -> None:
    picture = photograph().convert("RGBA")
    picture.putalpha(Image.linear_gradient("L").resize(picture.size).point(lambda value: 255 if value > 127 else 0))
    again = read(rewrite(private_picture(kind, picture, orientation=1), Order(kind, "raw", MOST, most))).convert("RGBA")
    alpha = again.getchannel("A")
    assert alpha.getpixel((again.width // 2, 0)) == 0 and alpha.getpixel((again.width // 2, again.height - 1)) == 255


def test_a_profile_is_applied_before_it_goes() -> None:
    """A profile of other colours: what the viewer sees stays."""
    lab = ImageCms.createProfile("LAB", 6500)
    srgb = ImageCms.createProfile("sRGB")
    swapped = _swapped_profile(ImageCms.ImageCmsProfile(srgb).tobytes())
    written = io.BytesIO()
    Image.new("RGB", (8, 8), (255, 0, 0)).save(written, "PNG", icc_profile=swapped)
    again = read(rewrite(written.getvalue(), Order("PNG", "raw", MOST)))
    red, green, _ = again.getpixel((0, 0))  # type: ignore[misc]
    assert green > red and "icc_profile" not in again.info
    # One that does not fit, or is none, is left out.
    for profile in (ImageCms.ImageCmsProfile(lab).tobytes(), b"no profile", swapped[:200]):
        written = io.BytesIO()
        Image.new("RGB", (8, 8), (255, 0, 0)).save(written, "PNG", icc_profile=profile)
        assert read(rewrite(written.getvalue(), Order("PNG", "raw", MOST))).getpixel((0, 0)) == (255, 0, 0)


def _swapped_profile(profile: bytes) -> bytes:
    """The profile with its red and green primaries exchanged."""
    return profile.replace(b"rXYZ", b"tmpX", 1).replace(b"gXYZ", b"rXYZ", 1).replace(b"tmpX", b"gXYZ", 1)


def test_the_first_picture_of_a_phones_jpeg_is_kept_alone() -> None:
    """Phones append previews and depth maps (MPO)."""
    written = io.BytesIO()
    photograph().save(written, "MPO", save_all=True, append_images=[photograph().rotate(180)], comment=MARK)
    assert read(written.getvalue()).n_frames == 2  # type: ignore[attr-defined]
    cleaned = rewrite(written.getvalue(), Order("JPEG", "raw", MOST))
    again = read(cleaned)
    assert (again.format, getattr(again, "n_frames", 1)) == ("JPEG", 1) and not is_private(cleaned)
    assert difference(again, photograph()) < 12


@pytest.mark.parametrize("exif", [b"Exif\0\0no tags", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_exif_data_that_cannot_be_read_is_left_out_too(kind: str, exif: bytes) -> None:
    written = io.BytesIO()
    photograph().save(written, kind, exif=exif)
    assert set(segments(kind, rewrite(written.getvalue(), Order(kind, "raw", MOST)))) <= NEEDED[kind]


def test_the_ways_in_which_bytes_are_written() -> None:
    data = private_picture("PNG")
    wanted = rewrite(data, Order("PNG", "raw", MOST))
    text = base64.b64encode(data)
    for form, given in [
        ("base64", text),
        ("base64", text.rstrip(b"=")),
        ("base64", base64.encodebytes(data)),
        ("base64", urllib.parse.quote_from_bytes(text).encode()),
        ("percent", urllib.parse.quote_from_bytes(data).encode()),
    ]:
        assert base64.b64decode(rewrite(given, Order("PNG", form, MOST)), validate=True) == wanted  # type: ignore[arg-type]


def refused(data: bytes, kind: str, **more: Any) -> str:
    with pytest.raises(Refusal) as refusal:
        rewrite(data, Order(kind, **{"form": "raw", "max_bytes": MOST, **more}))
    return str(refusal.value)


@pytest.mark.parametrize("kind", KINDS.values())
def test_a_broken_picture_is_refused(kind: str) -> None:
    whole = private_picture(kind, orientation=1)
    assert refused(b"no picture", kind) == f"it is no {kind} picture"
    assert refused(b"", kind) == f"it is no {kind} picture"
    for share in (3, 2):
        assert refused(whole[: len(whole) // share], kind)
    other = next(one for one in KINDS.values() if one != kind)
    assert refused(private_picture(other, orientation=1), kind) == f"it is no {kind} picture"


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animated_picture_or_one_with_pages_is_refused(kind: str) -> None:
    assert "animated, or has several pages" in refused(several(kind), kind)


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    head = bomb(1, 1).replace(
        b"\0\0\0\x01\0\0\0\x01\x08", (7200).to_bytes(4, "big") + (7200).to_bytes(4, "big") + b"\x08"
    )
    assert MAX_PIXELS < 7200 * 7200
    # Its checksum is wrong now, which a reader sees later than its size.
    assert refused(head, "PNG") in ("it has more than 51 million pixels", "it is no PNG picture")
    written = io.BytesIO()
    Image.new("1", (7200, 7200)).save(written, "PNG")
    assert refused(written.getvalue(), "PNG") == "it has more than 51 million pixels"


def test_a_picture_that_grows_beyond_the_plan_is_refused() -> None:
    data = private_picture("PNG")
    size = len(rewrite(data, Order("PNG", "raw", MOST)))
    rewrite(data, Order("PNG", "raw", size))
    assert f"more than {size - 1} bytes" in refused(data, "PNG", max_bytes=size - 1)


def test_base64_that_is_none_is_refused() -> None:
    assert refused(b"!", "PNG", form="base64") == "it is no PNG picture"
