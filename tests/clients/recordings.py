"""Requests of clients whose toolchains are not at hand, byte for byte as those clients put them on the wire."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from http.client import HTTPMessage, HTTPResponse
from pathlib import Path
from string import Template
from typing import Any

FOLDER = Path(__file__).parent / "recorded"


@dataclass(frozen=True)
class Reply:
    """What came back, as bytes and as the client reads it."""

    status: int
    headers: HTTPMessage
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        """The body, which these clients take for a JSON object whatever the status."""
        value = json.loads(self.body)
        assert isinstance(value, dict), f"not a JSON object: {value!r}"
        return value


class Recording:
    """All requests of one client by name; `$name` in them stands for what differs from call to call."""

    def __init__(self, client: str) -> None:
        _, *parts = (FOLDER / f"{client}.http").read_text().split("### ")
        self._requests = {name: rest for name, _, rest in (part.partition("\n") for part in parts)}

    def header_names(self, name: str) -> set[str]:
        """The names of a request's headers, in lower case."""
        lines = self._requests[name].partition("\n\n")[0].splitlines()[1:]
        return {line.partition(":")[0].lower() for line in lines}

    def send(self, name: str, address: str, *, file: bytes = b"", without: str = "", **values: object) -> Reply:
        """Write a request to `host:port`, on a connection of its own, and read the reply.

        `$host` and `$length` are filled in here; a body of `$file` is the file; no header called `without` is sent.
        """
        head, _, text = self._requests[name].partition("\n\n")
        body = file if text.strip() == "$file" else Template(text.strip()).substitute(values).encode()
        head = Template(head).substitute(values, host=address, length=len(body))
        lines = [line for line in head.splitlines() if not (without and line.startswith(f"{without}:"))]
        wire = "\r\n".join([*lines, "", ""]).encode() + body
        host, _, port = address.partition(":")
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(wire)
            response = HTTPResponse(connection)
            response.begin()
            with response:
                return Reply(response.status, response.headers, response.read())
