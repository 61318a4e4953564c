"""The file in a multipart form, read as it comes: no temporary file, and no more of it in memory than a piece."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from proxy.errors import BadRequest

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FIELD = "file"
#: What may stand before the file: its headers, which hold a name.
MAX_HEAD_BYTES = 16 * 1024


@dataclass(frozen=True)
class FormFile:
    """A file in a form. `size` is what it must have for the form to be as long as it says."""

    name: str
    content_type: str
    size: int
    content: AsyncGenerator[bytes, None]


async def file_of(form: AsyncGenerator[bytes, None], content_type: str, length: int) -> FormFile:
    """The only field of a form: a file called `file`.

    The size of the file follows from that of the form, as nothing comes after it but the last boundary.

    Raises:
        BadRequest: this is no such form.
    """
    reader = _Reader(content_type)
    begun, rest = await _begin(reader, form)
    disposition, options = parse_options_header(reader.header("content-disposition"))
    if disposition != b"form-data" or options.get(b"name") != FIELD.encode() or b"filename" not in options:
        raise BadRequest(f"The form must have one field, {FIELD!r}, that is a file.")
    size = length - begun - reader.closing_bytes
    if size <= 0:
        raise BadRequest("The file is empty.")
    return FormFile(
        name=options[b"filename"].decode("utf-8", "replace"),
        content_type=reader.header("content-type") or "application/octet-stream",
        size=size,
        content=_content(reader, rest, form),
    )


async def _begin(reader: _Reader, form: AsyncGenerator[bytes, None]) -> tuple[int, bytes]:
    """Read until the file begins: how many bytes stand before it, and what was read of it already."""
    at = 0
    async for piece in form:
        # One by one, so that it is known where the file begins.
        for place in range(len(piece)):
            reader.feed(piece[place : place + 1])
            at += 1
            if reader.has_begun:
                return at, piece[place + 1 :]
            if at > MAX_HEAD_BYTES:
                raise BadRequest("The head of the form's file is too large.")
    raise BadRequest("The form breaks off.")


async def _content(reader: _Reader, rest: bytes, form: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    for found in reader.feed(rest):
        yield found
    async for piece in form:
        for found in reader.feed(piece):
            yield found
    if not reader.has_ended:
        raise BadRequest("The form breaks off.")


class _Reader:
    """What the parser tells, kept until it is asked for."""

    def __init__(self, content_type: str) -> None:
        boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
        if not boundary:
            raise BadRequest("The form's content-type names no boundary.")
        #: After the file: a line break, the boundary between dashes, a line break.
        self.closing_bytes = len(b"\r\n--" + boundary + b"--\r\n")
        self.has_begun = self.has_ended = False
        self._headers: list[tuple[bytearray, bytearray]] = []
        self._found: list[bytes] = []
        try:
            self._parser = MultipartParser(boundary, self._callbacks())
        except FormParserError:
            raise BadRequest("The form's boundary is too long.") from None

    def header(self, name: str) -> str:
        found = [value for known, value in self._headers if known.lower() == name.encode()]
        return found[0].decode("utf-8", "replace") if found else ""

    def feed(self, data: bytes) -> list[bytes]:
        """What these bytes hold of the file.

        Raises:
            BadRequest: they are not those of a form, or of one with more than the file.
        """
        self._found = []
        try:
            self._parser.write(data)
        except FormParserError:
            raise BadRequest("The body is not a multipart form.") from None
        return self._found

    def _callbacks(self) -> MultipartCallbacks:
        def on_part_begin() -> None:
            if self.has_begun:
                raise BadRequest(f"The form has more than its {FIELD!r}.")

        def on_header_begin() -> None:
            self._headers.append((bytearray(), bytearray()))

        return {
            "on_part_begin": on_part_begin,
            "on_header_begin": on_header_begin,
            "on_header_field": lambda data, start, end: self._headers[-1][0].extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._headers[-1][1].extend(data[start:end]),
            "on_headers_finished": lambda: setattr(self, "has_begun", True),
            "on_part_data": lambda data, start, end: self._found.append(bytes(data[start:end])),
            "on_end": lambda: setattr(self, "has_ended", True),
        }
