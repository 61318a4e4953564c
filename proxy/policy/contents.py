"""What a file may be: its announced type, what its first bytes say it is, and its name."""

from __future__ import annotations

import re

from proxy.errors import UnsupportedMediaType
from proxy.policy.plans import Uploads

#: How much of a file is looked at. Every type that a browser shows tells itself within this.
HEAD_BYTES = 4096
OCTETS = "application/octet-stream"
#: Names of one thing: what a client announces, and what the signatures say.
_SYNONYMS = (
    {"image/jpeg", "image/jpg"},
    {"image/heic", "image/heif"},
    {"image/bmp", "image/x-ms-bmp"},
    {"image/x-icon", "image/vnd.microsoft.icon"},
    {"audio/mpeg", "audio/mp3"},
    {"audio/wav", "audio/wave", "audio/x-wav", "audio/vnd.wave"},
    {"audio/flac", "audio/x-flac"},
    {"video/x-msvideo", "video/avi"},
    {"video/webm", "audio/webm"},
)
#: The library takes these for signatures of pictures: a container that says only later what it holds, and two that are
#: escapes of bytes, written out as text.
_NO_SIGNATURES = (b"RIFF", rb"\x89PNG", rb"\377\330\377")
_UNSAFE_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


def allowed_type(content_type: str, uploads: Uploads) -> str:
    """The media type that a header or a form announces, without its parameters.

    Raises:
        UnsupportedMediaType: the plan does not allow such files.
    """
    announced = media_type(content_type)
    if announced not in uploads.content_types:
        allowed = ", ".join(sorted(uploads.content_types))
        raise UnsupportedMediaType(f"Files of this type may not be uploaded; allowed are {allowed}.")
    return announced


def media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def check_head(head: bytes, content_type: str) -> None:
    """Hold a file's first bytes against the type that it was announced as.

    Text has no signature, and `application/octet-stream` promises nothing: a plan that allows these allows what they
    can hold.

    Raises:
        UnsupportedMediaType: it is something else.
    """
    if content_type == OCTETS:
        return
    if content_type.startswith("text/") or content_type == "application/json":
        fits = b"\0" not in head
    else:
        fits = bool(_recognised(head) & _synonyms(content_type))
    if not fits:
        raise UnsupportedMediaType(f"The file was announced as {content_type}, but does not begin as one.")


def _recognised(head: bytes) -> set[str]:
    """The types whose signature the head bears."""
    # Imported here: a proxy that relays no files has better uses for the memory of a thousand signatures.
    import puremagic

    try:
        matches = puremagic.magic_string(head) if head else []
    except puremagic.PureError:
        return set()
    # Offsets below 0 count from the end, and the end of the head is anywhere in the file.
    return {match.mime_type for match in matches if match.offset >= 0 and match.byte_match not in _NO_SIGNATURES}


def _synonyms(content_type: str) -> set[str]:
    return next((names for names in _SYNONYMS if content_type in names), {content_type})


def clean_name(name: str) -> str:
    """The last part of a file's name, without anything that could mean something to a path or a URL."""
    last = re.split(r"[/\\]", name)[-1]
    return _UNSAFE_IN_NAMES.sub("_", last).lstrip(".")[-128:] or "file"
