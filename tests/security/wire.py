"""An HTTP client that sends the given bytes unchanged and returns answers unchanged."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from http.client import HTTPResponse
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

Headers = Iterable[tuple[str, str]]


@dataclass(frozen=True)
class Answer:
    """One answer. Header names are in lower case; a repeated header is listed repeatedly."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def all(self, name: str) -> list[str]:
        return [value for known, value in self.headers if known == name]

    def json(self) -> Any:
        return json.loads(self.body)


class Wire:
    """One connection at a time, kept alive while the server does. Texts are sent as Latin-1: one character a byte."""

    def __init__(self, url: str, seconds: float = 20) -> None:
        parts = urlsplit(url)
        self.address = str(parts.hostname), int(parts.port or 80)
        self._seconds = seconds
        self._socket: socket.socket | None = None

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def exchange(self, method: str, path: str, headers: Headers = (), body: bytes = b"") -> Answer:
        """Send one request with a `host`, a `content-length` if there is a body, and exactly these headers."""
        length = [("content-length", str(len(body)))] if body else []
        lines = [f"{method} {path} HTTP/1.1", "host: {}:{}".format(*self.address)]
        lines += [f"{name}: {value}" for name, value in [*headers, *length]]
        return self.raw(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body, method)

    def raw(self, request: bytes, method: str = "POST") -> Answer:
        """Send these bytes and read one answer."""
        connection = self.connected()
        connection.sendall(request)
        return self.answer(connection, method)

    def answer(self, connection: socket.socket, method: str) -> Answer:
        response = HTTPResponse(connection, method=method)
        try:
            response.begin()
            found = tuple((name.lower(), value) for name, value in response.getheaders())
            answer = Answer(response.status, found, response.read())
        except BaseException:
            self.close()
            raise
        if response.will_close:
            self.close()
        response.close()
        return answer

    def connected(self) -> socket.socket:
        """The open connection, for a test that writes on it piece by piece."""
        if self._socket is None:
            self._socket = socket.create_connection(self.address, self._seconds)
        return self._socket
