"""A request as the application gets it."""

from __future__ import annotations

import asyncio
import urllib.parse
from functools import lru_cache
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from proxy.http.disconnect import EXTENSION, Disconnect
from proxy.http.scope import HAS_BODY
from proxy.server.event import LightEvent
from proxy.server.exchange import Exchange, UnchunkedExchange
from proxy.server.flow import Flow, Pipeline

#: The last targets up to this length are remembered: most are asked for again.
MAX_REMEMBERED_BYTES = 256


class AsgiProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which makes the scope and the exchange of a request in one step.

    There are no websockets here, and no `limit_concurrency`: connections have limits of their own.

    Attributes:
        body_left: bytes that are still to come of a body with a length.
    """

    #: As in the classes derived from this one: with more than thirty attributes, uvicorn's among them, the dictionary
    #: of a connection would be six times as large.
    __slots__ = ("body_left",)

    cycle: Exchange

    def __init__(self, *options: Any) -> None:
        super().__init__(*options)
        self.body_left = 0
        self.pipeline = Pipeline()  # type: ignore[assignment]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = Flow(transport)

    def on_message_begin(self) -> None:
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_message_complete(self) -> None:
        exchange = self.cycle
        exchange.scope["state"][HAS_BODY] = True
        if not exchange.response_complete:
            exchange.more_body = False
            exchange.message_event.set()

    def on_body(self, body: bytes | memoryview) -> None:
        self.body_left -= len(body)
        exchange = self.cycle
        if not exchange.response_complete and exchange.hold(body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()

    def end_direct_body(self) -> None:
        """Read the next message, with another parser: the last one is still in the middle of the body."""
        self.renew_parser()
        self.transport.set_protocol(self)
        self.on_message_complete()

    def renew_parser(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def begin_exchange(self, version: str, method: bytes) -> None:
        """Start the request whose head was read, or let it wait for those before it on this connection."""
        before = self.cycle
        self.cycle = self._new_exchange(version, method)
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def _new_exchange(self, version: str, method: bytes) -> Exchange:
        path, raw_path, query = parse_target(self.url)
        disconnect = Disconnect()
        self.scope = scope = {  # type: ignore[assignment]
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": version,
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "method": method.decode("ascii"),
            "root_path": self.root_path,
            "path": self.root_path + path,
            "raw_path": self.root_path.encode("ascii") + raw_path,
            "query_string": query,
            "headers": self.headers,
            "state": self.app_state.copy(),
            "extensions": {EXTENSION: disconnect},
        }
        is_new = version == "1.1"
        options: dict[str, Any] = {
            "scope": scope,
            "transport": self.transport,
            "flow": self.flow,
            "logger": self.logger,
            "access_logger": self.access_logger,
            "access_log": False,
            "default_headers": self.server_state.default_headers,
            "message_event": LightEvent(),
            # Clients of HTTP/1.0 know no interim answers (RFC 9110, section 10.1.1).
            "expect_100_continue": self.expect_100_continue and is_new,
            "keep_alive": is_new and self.parser.should_keep_alive(),
            "on_response": self.on_response_complete,
        }
        exchange = Exchange(**options) if is_new else UnchunkedExchange(**options)
        exchange.disconnect = disconnect
        return exchange


def parse_target(url: bytes) -> tuple[str, bytes, bytes]:
    """Give the path of a request's target, the same as it was sent, and its query.

    Raises:
        httptools.HttpParserInvalidURLError: this is not the target of a request.
    """
    return _parse_short(url) if len(url) <= MAX_REMEMBERED_BYTES else _parse(url)


def _parse(url: bytes) -> tuple[str, bytes, bytes]:
    parsed = httptools.parse_url(url)
    path = parsed.path.decode("ascii")
    return urllib.parse.unquote(path) if "%" in path else path, parsed.path, parsed.query or b""


_parse_short = lru_cache(maxsize=1024)(_parse)
