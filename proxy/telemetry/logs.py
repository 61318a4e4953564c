"""Log lines, without secrets."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import TextIO

import orjson

from proxy.redaction import Redactor
from proxy.settings import LogSettings

_root, _access = logging.getLogger(), logging.getLogger("proxy.access")
#: What JSON leaves as it is, and a terminal or a reader of lines takes for something else: DEL, C1 with NEL, the line
#: and paragraph separators, characters that are not seen or turn the direction of writing, halves of surrogate pairs.
_UNSAFE = re.compile("[\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]")
#: What stands in a line of text without quotes: it holds nothing that ends a value or begins a field.
_PLAIN_VALUE = re.compile(r"""[^\x00-\x20\s"=\\]+""")
_PLAIN_MESSAGE = re.compile(r"""[^\x00-\x1f"=\\]+""")


class _Formatter(logging.Formatter):
    """One line a record, JSON or text. Fields are redacted as they are, then encoded: a line can always be parsed."""

    def __init__(self, form: str, redactor: Redactor) -> None:
        super().__init__()
        self._encode = _as_json if form == "json" else _as_text
        self._redactor = redactor

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "log_fields", {})
        if record.exc_info:
            fields = {**fields, "traceback": self.formatException(record.exc_info)}
        return self.format_fields(record.created, record.levelname, record.name, _message(record), fields)

    def format_fields(self, created: float, level: str, logger: str, message: str, more: Mapping[str, object]) -> str:
        second = int(created)
        fields: dict[str, object] = {
            "time": f"{_second(second)}.{int((created - second) * 1000):03d}Z",
            "level": level.lower(),
            "logger": logger,
            "message": message,
            **more,
        }
        return self._encode(self._redact(fields))

    def _redact(self, fields: dict[str, object]) -> dict[str, object]:
        shown = fields
        if not _SCALARS.issuperset(map(type, fields.values())):
            shown = {name: value if type(value) in _SCALARS else str(value) for name, value in fields.items()}
        texts = [value for value in shown.values() if type(value) is str]
        # One search for all spares most lines a search for each; no secret holds this separator.
        if not self._redactor.is_needed("\0".join(texts)):
            return shown
        clean = self._redactor.clean
        return {name: clean(value) if isinstance(value, str) else value for name, value in shown.items()}


class LineHandler(logging.StreamHandler[TextIO]):
    """Writes each line to stderr at once."""

    def __init__(self, form: str, redactor: Redactor) -> None:
        super().__init__(sys.stderr)
        self._lines = _Formatter(form, redactor)
        self.setFormatter(self._lines)

    def write_line(self, level: int, logger: str, message: str, fields: Mapping[str, object]) -> None:
        """Write what a record with these contents would be written as, without making one."""
        line = self._lines.format_fields(time.time(), logging.getLevelName(level), logger, message, fields)
        self.acquire()
        try:
            self.stream.write(line + self.terminator)
            self.stream.flush()
        except (OSError, ValueError):
            # The log cannot be written, and there is no other place to say so.
            pass
        finally:
            self.release()


def log_request(level: int, fields: Mapping[str, object]) -> None:
    """Log an answered request to `proxy.access`.

    Where this program's handler is the only one, it gets the fields as they are. A line takes 11 instead of 20 µs so:
    the rest is what `logging` needs to make a record and carry it to the handler.
    """
    handlers = _root.handlers
    if len(handlers) == 1 and not _access.handlers and isinstance(handlers[0], LineHandler):
        handlers[0].write_line(level, _access.name, "request", fields)
    else:
        _access.log(level, "request", extra={"log_fields": fields})


_SCALARS = frozenset((str, int, float, bool, type(None)))


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError, LookupError):
        # `logging` would print the arguments as they are.
        return str(record.msg)


def _as_json(fields: dict[str, object]) -> str:
    try:
        line = orjson.dumps(fields).decode()
    except TypeError:
        # Numbers of more than 64 bits, and half characters.
        line = json.dumps(fields)
    return escape_unseen(line)


def _as_text(fields: dict[str, object]) -> str:
    time_, level, _, message, *rest = fields.values()
    names = list(fields)[4:]
    more = " ".join(f"{name}={_quote(str(value), _PLAIN_VALUE)}" for name, value in zip(names, rest, strict=True))
    return f"{time_} {str(level).upper():7} {_quote(str(message), _PLAIN_MESSAGE)} {more}".rstrip()


def _quote(text: str, plain: re.Pattern[str]) -> str:
    """Write a plain text as it is, and any other as a string of JSON."""
    if plain.fullmatch(text) and not _UNSAFE.search(text):
        return text
    return _UNSAFE.sub(_escape, json.dumps(text, ensure_ascii=False))


def escape_unseen(text: str) -> str:
    """Escape what a terminal would obey or not show, as strings of JSON do; JSON keeps its meaning."""
    return text if text.isascii() and "\x7f" not in text else _UNSAFE.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


@lru_cache(maxsize=2)
def _second(moment: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment))


def configure_logging(settings: LogSettings, redactor: Redactor) -> None:
    """Send every logger of the process through one redacting handler on stderr."""
    # What no line shows need not be found out for each (https://docs.python.org/3/howto/logging.html#optimization).
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    root = _root
    root.handlers[:] = [LineHandler(settings.format, redactor)]
    root.setLevel(settings.level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        # uvicorn writes its access log as soon as anyone would hear it: with paths, and so with sessions and uploads.
        logging.getLogger(name).propagate = name != "uvicorn.access"
    # What these say at INFO and DEBUG carries URLs, queries and SQL parameters of callers.
    for name in ("httpx", "httpcore", "sqlalchemy", "alembic", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It warns of each wrong byte in a caller's form, which is refused anyway.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
