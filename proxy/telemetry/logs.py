"""Log lines, without secrets."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from functools import lru_cache

import orjson

from proxy.redaction import Redactor
from proxy.settings import LogSettings

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
        fields: dict[str, object] = {
            "time": f"{_second(int(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
            **getattr(record, "log_fields", {}),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return self._encode(self._redact(fields))

    def _redact(self, fields: dict[str, object]) -> dict[str, object]:
        shown = {name: value if type(value) in _SCALARS else str(value) for name, value in fields.items()}
        texts = [value for value in shown.values() if type(value) is str]
        # One search for all spares most lines a search for each; no secret holds this separator.
        if not self._redactor.is_needed("\0".join(texts)):
            return shown
        clean = self._redactor.clean
        return {name: clean(value) if isinstance(value, str) else value for name, value in shown.items()}


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
    return line if line.isascii() and "\x7f" not in line else _UNSAFE.sub(_escape, line)


def _as_text(fields: dict[str, object]) -> str:
    time_, level, _, message, *rest = fields.values()
    names = list(fields)[4:]
    more = " ".join(f"{name}={_quote(str(value), _PLAIN_VALUE)}" for name, value in zip(names, rest, strict=True))
    return f"{time_} {str(level).upper():7} {_quote(str(message), _PLAIN_MESSAGE)} {more}".rstrip()


def _quote(text: str, plain: re.Pattern[str]) -> str:
    """The text as it is where it is plain, else as a string of JSON."""
    if plain.fullmatch(text) and not _UNSAFE.search(text):
        return text
    return _UNSAFE.sub(_escape, json.dumps(text, ensure_ascii=False))


def _escape(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


@lru_cache(maxsize=2)
def _second(moment: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment))


def configure_logging(settings: LogSettings, redactor: Redactor) -> None:
    """Send every logger of the process through one redacting handler on stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(settings.format, redactor))
    # What no line shows need not be found out for each (https://docs.python.org/3/howto/logging.html#optimization).
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        # uvicorn writes its access log as soon as anyone would hear it: with paths, and so with sessions and uploads.
        logging.getLogger(name).propagate = name != "uvicorn.access"
    # What these say at INFO and DEBUG carries URLs, queries and SQL parameters of callers.
    for name in ("httpx", "httpcore", "aiohttp", "aiosqlite", "sqlalchemy", "alembic", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It warns of each wrong byte in a caller's form, which is refused anyway.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
