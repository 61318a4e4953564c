"""The file in a multipart form (RFC 7578), read as it comes: no temporary file, and no more in memory than a piece.

What stands before the first delimiter and after the last one is ignored, as RFC 2046, 5.1.1, asks for. So the size of
the file is known only at its end; until then two bounds of it are.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from email.message import Message
from email.utils import collapse_rfc2231_value
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from proxy.errors import BadRequest, UnsupportedMediaType
from proxy.uploads.body import IncomingFile

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FIELD = "file"
#: What may stand before the file: a preamble and the file's headers, which hold a name.
MAX_HEAD_BYTES = 16 * 1024
#: What may stand after the last delimiter of a form whose file is passed on before the end of it is seen.
MAX_EPILOGUE_BYTES = 1024
#: The codings of a file that change nothing (RFC 9110, section 8.4; RFC 2045, section 6.1).
_PLAIN_CODINGS = {
    "content-encoding": ("", "identity"),
    "content-transfer-encoding": ("", "7bit", "8bit", "binary"),
}
#: As browsers write what would end a name (HTML, 4.10.22.8).
_BROWSER_ESCAPES = (("%22", '"'), ("%0D", "\r"), ("%0A", "\n"))


async def parse_form(form: AsyncGenerator[bytes, None], content_type: str, length: int) -> IncomingFile:
    """Parse a form whose only field is a file called `file`.

    Raises:
        BadRequest: this is no such form.
    """
    reader = _Reader(content_type)
    begun, rest = await _begin(reader, form)
    _check_codings(reader)
    name = _file_name(reader.header("content-disposition"))
    most = length - begun - reader.closing_bytes
    if most <= 0:
        raise BadRequest("The file is empty, or the form is incomplete.")
    return IncomingFile(
        name=name,
        content_type=reader.header("content-type") or "application/octet-stream",
        size=most,
        least=most - MAX_EPILOGUE_BYTES,
        content=_content(reader, rest, form),
    )


def _check_codings(reader: _Reader) -> None:
    """Refuse a file that is packed or written as text, or says so: its bytes go to fal as they are.

    Raises:
        UnsupportedMediaType: it names the coding.
    """
    for name, plain in _PLAIN_CODINGS.items():
        coding = reader.header(name).strip().lower()
        if coding not in plain:
            raise UnsupportedMediaType(f"The form's file has the {name} {coding[:40]!r}; send it as it is.")


def _file_name(disposition: str) -> str:
    """Read the name of the file from the header of its field; in UTF-8, or extended as RFC 8187 has it.

    Raises:
        BadRequest: the field is another, or no file.
    """
    header = Message()
    header["content-disposition"] = disposition
    try:
        # In the order of the list, so that an extended name counts before a plain one.
        (kind, _), *given = header.get_params([("", "")], header="content-disposition") or []
        found = dict(given)
        texts = {name: collapse_rfc2231_value(value) for name, value in given}
    except ValueError:
        raise BadRequest("The form's content-disposition cannot be read.") from None
    if kind.lower() != "form-data" or texts.get("name") != FIELD or "filename" not in texts:
        raise BadRequest(f"The form must have one field, {FIELD!r}, that is a file.")
    name = texts["filename"]
    if isinstance(found["filename"], str):
        name = name.encode("latin-1", "replace").decode("utf-8", "replace")
    for escape, character in _BROWSER_ESCAPES:
        name = name.replace(escape, character)
    return name


async def _begin(reader: _Reader, form: AsyncGenerator[bytes, None]) -> tuple[int, bytes]:
    """Read until the file begins; return how many bytes are before it, and what was read of it already."""
    head = bytearray()
    async for piece in form:
        head += piece
        end = reader.read_head(head)
        if (end or len(head)) > MAX_HEAD_BYTES:
            raise BadRequest("The head of the form's file is too large, or the body is not a multipart form.")
        if end is not None:
            return end, bytes(head[end:])
    raise BadRequest("The form is incomplete, or has no file.")


async def _content(reader: _Reader, rest: bytes, form: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    for found in reader.feed(rest):
        yield found
    async for piece in form:
        for found in reader.feed(bytes(piece)):
            yield found
    if not reader.has_ended:
        raise BadRequest("The form is incomplete.")


class _Reader:
    """Parses a form, and keeps what the parser finds until it is asked for."""

    def __init__(self, content_type: str) -> None:
        boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
        if not boundary:
            raise BadRequest("The form's content-type has no boundary.")
        #: After the file: a line break and the boundary between dashes.
        self.closing_bytes = len(b"\r\n--" + boundary + b"--")
        self.has_ended = False
        self._has_begun = False
        self._headers: list[tuple[bytearray, bytearray]] = []
        self._found: list[bytes] = []
        self._delimiter = b"--" + boundary
        # A line of its own, with white space behind it that counts for nothing; or the last one already.
        self._first = re.compile(rb"(?:\A|\r\n)" + re.escape(self._delimiter) + rb"(?:(--)|[ \t]*+\r\n)")
        self._headers_at: int | None = None
        try:
            self._parser = MultipartParser(boundary, self._callbacks())
        except FormParserError:
            raise BadRequest("The form's boundary is too long.") from None

    def header(self, name: str) -> str:
        found = [value for known, value in self._headers if known.lower() == name.encode()]
        return found[0].decode("latin-1") if found else ""

    def read_head(self, data: bytearray) -> int | None:
        """Read the headers of the file, if they are there; where it begins.

        Raises:
            BadRequest: they are no headers, or there is no file.
        """
        if self._headers_at is None:
            first = self._first.search(data)
            if first is None:
                return None
            if first[1]:
                raise BadRequest("The form is empty.")
            self._headers_at = first.end() - len(b"\r\n")
        end = data.find(b"\r\n\r\n", self._headers_at)
        if end < 0:
            return None
        end += len(b"\r\n\r\n")
        self.feed(self._delimiter + data[self._headers_at : end])
        return end

    def feed(self, data: bytes) -> list[bytes]:
        """Return what these bytes hold of the file.

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
            if self._has_begun:
                raise BadRequest(f"The form has more than one field; send only {FIELD!r}.")
            self._has_begun = True

        def on_header_begin() -> None:
            self._headers.append((bytearray(), bytearray()))

        return {
            "on_part_begin": on_part_begin,
            "on_header_begin": on_header_begin,
            "on_header_field": lambda data, start, end: self._headers[-1][0].extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._headers[-1][1].extend(data[start:end]),
            "on_part_data": lambda data, start, end: self._found.append(bytes(data[start:end])),
            "on_end": lambda: setattr(self, "has_ended", True),
        }
