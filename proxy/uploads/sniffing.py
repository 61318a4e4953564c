"""What a file may be: its announced type, what its first bytes say it is, and its name."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator

from proxy.errors import BadRequest, UnsupportedMediaType
from proxy.tenants.plans import Uploads

#: How much of a file is looked at. Every type that a browser shows tells itself within this.
HEAD_BYTES = 4096
OCTETS = "application/octet-stream"
#: Other names of a type, as pickers of pictures and old programs announce it, and the one that fal gets.
_ALIASES = {
    "image/jpg": "image/jpeg",
    "image/pjpeg": "image/jpeg",
    "image/jfif": "image/jpeg",
    "image/pipeg": "image/jpeg",
    "image/x-jpeg": "image/jpeg",
    "image/x-jpg": "image/jpeg",
    "image/x-citrix-jpeg": "image/jpeg",
    "image/x-png": "image/png",
    "image/x-citrix-png": "image/png",
    "image/x-gif": "image/gif",
    "image/x-citrix-gif": "image/gif",
    "image/x-webp": "image/webp",
    "image/tif": "image/tiff",
    "image/x-tif": "image/tiff",
    "image/x-tiff": "image/tiff",
    "image/x-bmp": "image/bmp",
    "image/x-ms-bmp": "image/bmp",
    "image/x-windows-bmp": "image/bmp",
    "image/x-bitmap": "image/bmp",
    "image/x-ms-icon": "image/x-icon",
    "image/x-heic": "image/heic",
    "image/x-heif": "image/heic",
    "image/vnd.microsoft.icon": "image/x-icon",
    "image/ico": "image/x-icon",
    "image/jpeg2000": "image/jp2",
    "image/jpeg2000-image": "image/jp2",
    "image/heif": "image/heic",
    "image/heif-sequence": "image/heic-sequence",
    "image/avif-sequence": "image/avif",
    "audio/mp3": "audio/mpeg",
    "audio/x-mp3": "audio/mpeg",
    "audio/mpeg3": "audio/mpeg",
    "audio/x-mpeg": "audio/mpeg",
    "audio/wave": "audio/wav",
    "audio/x-wav": "audio/wav",
    "audio/x-pn-wav": "audio/wav",
    "audio/x-wave": "audio/wav",
    "audio/vnd.wav": "audio/wav",
    "audio/vnd.wave": "audio/wav",
    "audio/x-flac": "audio/flac",
    "audio/m4a": "audio/mp4",
    "audio/x-m4a": "audio/mp4",
    "audio/x-aac": "audio/aac",
    "video/x-m4v": "video/mp4",
    "video/mov": "video/quicktime",
    "video/x-quicktime": "video/quicktime",
    "video/avi": "video/x-msvideo",
    "video/msvideo": "video/x-msvideo",
    "application/x-pdf": "application/pdf",
}
#: Types whose files begin alike.
_ALIKE = {
    "audio/webm": "video/webm",
    "audio/mp4": "video/mp4",
    "audio/3gpp": "video/3gpp",
    "audio/3gpp2": "video/3gpp2",
}
#: What the brands of a file say that it holds (ISO/IEC 14496-12, 4.3; 23008-12, annex B; AV1 Image File Format, 6), by
#: all their letters or, where the last one is a version, by the first three.
_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis"), frozenset({"image/heic"})),
    **dict.fromkeys((b"hevc", b"hevx", b"hevm", b"hevs"), frozenset({"image/heic", "image/heic-sequence"})),
    **dict.fromkeys((b"avif", b"avis"), frozenset({"image/avif"})),
    **dict.fromkeys(
        (b"iso", b"mp4", b"avc1", b"dash", b"MSNV", b"M4V", b"M4A", b"M4B", b"f4v"), frozenset({"video/mp4"})
    ),
    **dict.fromkeys((b"3gp", b"3ge", b"3gg", b"3gr", b"3gs"), frozenset({"video/3gpp"})),
    b"3g2": frozenset({"video/3gpp2"}),
    b"qt  ": frozenset({"video/quicktime"}),
}
#: QuickTime is older than brands.
_TOLD_BY_BRANDS = frozenset().union(*_BRANDS.values()) - {"video/quicktime"}
#: The library takes these for signatures of other types: a container that says only later what it holds, two that are
#: escapes of bytes, written out as text, and the first box of JPEG 2000 as a JPEG.
_NO_SIGNATURES = (b"RIFF", rb"\x89PNG", rb"\377\330\377", b"\0\0\0\x0cjP  ")
_JPEG_LS = b"\xff\xd8\xff\xf7"
#: What pickers of pictures and examples of HTTP libraries announce without looking at the file.
_UNSPECIFIC = re.compile(r"|(\*|image|video|audio)(/\*)?|(application|binary)/octet-stream|multipart/form-data")
_UNSAFE_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


def allowed_type(content_type: str, uploads: Uploads) -> str:
    """Return the canonical media type that a header or a form announces.

    Raises:
        UnsupportedMediaType: the plan does not allow such files, by any of their names.
    """
    announced = media_type(content_type)
    if announced not in {canonical_type(name) for name in uploads.content_types}:
        allowed = ", ".join(sorted(uploads.content_types))
        raise UnsupportedMediaType(f"The plan does not allow files of this type; it allows {allowed}.")
    return announced


def guess_type(head: bytes, uploads: Uploads) -> str | None:
    """Guess the type of a file that came without one: that of its first bytes, if the plan allows just one that fits.

    None if the plan allows files of any type, or the bytes say too little.
    """
    allowed = {canonical_type(name) for name in uploads.content_types}
    types = frozenset() if OCTETS in allowed else recognise(head)
    found = sorted(types & allowed or {name for name in allowed if _ALIKE.get(name) in types})
    return found[0] if len(found) == 1 else None


def media_type(content_type: str) -> str:
    """Return the canonical media type of a header, without its parameters."""
    return canonical_type(content_type.partition(";")[0])


def is_unspecific(content_type: str) -> bool:
    """Return whether a header says nothing of what a file is, as `image/*` does."""
    return _UNSPECIFIC.fullmatch(media_type(content_type)) is not None


def canonical_type(name: str) -> str:
    """Return the one name of a media type that has several."""
    name = name.strip().lower()
    return _ALIASES.get(name, name)


def check_head(head: bytes, content_type: str) -> None:
    """Check that a file's first bytes fit the type that it was announced as.

    Text has no signature, and `application/octet-stream` promises nothing: a plan that allows these allows what they
    can hold.

    Raises:
        UnsupportedMediaType: it is something else.
    """
    kind = canonical_type(content_type)
    if kind == OCTETS:
        return
    if kind.startswith("text/") or kind == "application/json":
        fits = b"\0" not in head
    else:
        fits = _ALIKE.get(kind, kind) in recognise(head)
    if not fits:
        raise UnsupportedMediaType(f"The file was announced as {content_type}, but its first bytes are another type.")


async def sniff(content: AsyncGenerator[bytes, None], content_type: str) -> AsyncGenerator[bytes, None]:
    """Check that the first bytes of a content fit its type; return the whole content.

    Raises:
        BadRequest: there are none.
        UnsupportedMediaType: they are not of this type.
    """
    head, whole = await peek(content, HEAD_BYTES)
    if not head:
        raise BadRequest("The file is empty.")
    check_head(head, content_type)
    return whole


async def peek(content: AsyncGenerator[bytes, None], size: int) -> tuple[bytes, AsyncGenerator[bytes, None]]:
    """Read the first `size` bytes, or all if there are fewer; return them and the whole content, with them."""
    head: list[bytes] = []
    while sum(map(len, head)) < size and (piece := await anext(content, None)) is not None:
        head.append(piece)

    async def replay() -> AsyncGenerator[bytes, None]:
        while head:
            yield head.pop(0)
        async for piece in content:
            yield piece

    return b"".join(head)[:size], replay()


def recognise(head: bytes) -> frozenset[str]:
    """Return the canonical types whose signature the head bears."""
    if types := _types_of_brands(head):
        return types
    if head.startswith(_JPEG_LS):
        # It begins as a JPEG does, and readers of JPEGs cannot read it.
        return frozenset({"image/jls"})
    if _is_frame_of_mp3(head):
        return frozenset({"audio/mpeg"})
    # Imported here: a proxy that relays no files has better uses for the memory of a thousand signatures.
    import puremagic

    try:
        matches = puremagic.magic_string(head) if head else []
    except puremagic.PureError:
        return frozenset()
    # Offsets below 0 count from the end, and the end of the head is anywhere in the file.
    found = {match.mime_type for match in matches if match.offset >= 0 and match.byte_match not in _NO_SIGNATURES}
    return frozenset(_ALIKE.get(name, name) for name in map(canonical_type, found)) - _TOLD_BY_BRANDS


def _types_of_brands(head: bytes) -> frozenset[str]:
    """Read the types from the first box of a file of the ISO base media family; the head must hold all of the box."""
    size = int.from_bytes(head[:4], "big")
    if head[4:8] != b"ftyp" or not 16 <= size <= len(head):
        return frozenset()
    # The major brand, its version, and the compatible brands.
    brands = {head[8:12], *(head[at : at + 4] for at in range(16, size - 3, 4))}
    types = frozenset().union(*(_BRANDS.get(brand) or _BRANDS.get(brand[:3], frozenset()) for brand in brands))
    # An animated picture has the brands of its film as well.
    return frozenset(name for name in types if name.startswith("image/")) or types


def _is_frame_of_mp3(head: bytes) -> bool:
    """Return whether a file begins with a layer III frame of any version (ISO/IEC 11172-3, 2.4.1.3; 13818-3)."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2 or head[1] & 0x18 == 0x08:
        return False
    return head[2] & 0xF0 not in (0x00, 0xF0) and head[2] & 0x0C != 0x0C


def clean_name(name: str) -> str:
    """Return the last part of a file's name, without anything that could mean something to a path or a URL."""
    last = re.split(r"[/\\]", name)[-1]
    return _UNSAFE_IN_NAMES.sub("_", last).lstrip(".")[-128:] or "file"
