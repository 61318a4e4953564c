"""Reads the events of fal's streams."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import httpx
import orjson

from proxy.upstream import sse
from proxy.upstream.engine import ReplyHeaders, StreamedReply, decoded_body

_NO_HEADERS: ReplyHeaders = {}
_log = logging.getLogger(__name__)


class StreamBroken(Exception):
    """The stream broke off. The caller's connection is cut, so that no client takes this for the end of the job."""


class Event(NamedTuple):
    """An event of fal's: its `data`, and the JSON document in it."""

    data: bytes
    document: Any


class EventReader:
    """Reads the events of a stream in order. It does not close the reply.

    Args:
        missed: called for each event that is not JSON, which is left out.

    Attributes:
        is_over: whether the stream has come to its end.
    """

    __slots__ = ("_body", "_missed", "_splitter", "is_over")

    def __init__(self, reply: StreamedReply, missed: Callable[[], None] = lambda: None) -> None:
        self._body = decoded_body(reply)
        self._missed = missed
        self._splitter = sse.EventSplitter()
        self.is_over = False
        # A stream is open for minutes, so its headers are not kept.
        reply.headers = _NO_HEADERS

    async def read(self) -> list[Event]:
        """Read the next events, those that came together; none at the end of the stream.

        Raises:
            StreamBroken: it broke off, or its bytes make no sense.
        """
        try:
            while not self.is_over:
                if events := self._parse(await self._body.read()):
                    return events
        except (httpx.HTTPError, sse.EventTooLarge) as error:
            raise StreamBroken(type(error).__name__) from None
        return []

    def _parse(self, chunk: bytes) -> list[Event]:
        """Return the events that end in a chunk; an empty chunk is the end of the stream."""
        if not chunk:
            self.is_over = True
            return []
        found = []
        for text in self._splitter.feed(chunk):
            if (data := sse.data_of(text)) is None:
                continue
            try:
                found.append(Event(data, orjson.loads(data)))
            except orjson.JSONDecodeError:
                _log.warning("event of fal's stream skipped: it is not JSON")
                self._missed()
        return found
