"""What operators see: logs without secrets, and metrics."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import orjson
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from proxy.redaction import Redactor
from proxy.settings import LogSettings
from proxy.worker_metrics import WorkerMetrics

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
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return self._encode(self._redacted(fields))

    def _redacted(self, fields: dict[str, object]) -> dict[str, object]:
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
    return line if line.isascii() and "\x7f" not in line else _UNSAFE.sub(_escaped, line)


def _as_text(fields: dict[str, object]) -> str:
    time_, level, _, message, *rest = fields.values()
    names = list(fields)[4:]
    more = " ".join(f"{name}={_quoted(str(value), _PLAIN_VALUE)}" for name, value in zip(names, rest, strict=True))
    return f"{time_} {str(level).upper():7} {_quoted(str(message), _PLAIN_MESSAGE)} {more}".rstrip()


def _quoted(text: str, plain: re.Pattern[str]) -> str:
    """The text as it is where it is plain, else as a string of JSON."""
    if plain.fullmatch(text) and not _UNSAFE.search(text):
        return text
    return _UNSAFE.sub(_escaped, json.dumps(text, ensure_ascii=False))


def _escaped(found: re.Match[str]) -> str:
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


class Metrics:
    """The process's counters; labels are of a small, fixed set, never an id of a caller."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._of_workers: WorkerMetrics | None = None
        self.requests = Counter(
            "fal_proxy_requests", "Requests answered.", ["surface", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "fal_proxy_request_seconds", "Time to the end of the answer.", ["surface"], registry=self.registry
        )
        self.refusals = Counter(
            "fal_proxy_refusals", "Requests refused, by error_type.", ["error_type"], registry=self.registry
        )
        self.uncounted = Counter(
            "fal_proxy_uncounted", "Limits that could not be checked: the counters were down.", registry=self.registry
        )
        self.unheard = Counter(
            "fal_proxy_refusals_over_budget",
            "Requests refused unheard: their address had used its budget of refusals.",
            registry=self.registry,
        )
        self.connections = Gauge("fal_proxy_connections", "Connections that callers hold open.", registry=self.registry)
        self.body_bytes = Gauge(
            "fal_proxy_body_bytes", "Bytes of large request bodies in memory.", registry=self.registry
        )
        self.connections_refused = Counter(
            "fal_proxy_connections_refused",
            "Connections refused, by the limit that was reached: process or address.",
            ["limit"],
            registry=self.registry,
        )
        self.connections_evicted = Counter(
            "fal_proxy_connections_evicted",
            "Connections that waited for their caller and were closed to make room for others.",
            registry=self.registry,
        )
        self.upstream_refusals = Counter(
            "fal_proxy_upstream_refusals",
            "Calls that fal refused or failed at, by reason.",
            ["reason"],
            registry=self.registry,
        )
        self.reloads = Counter(
            "fal_proxy_config_reloads",
            "Reloads of the configuration, by outcome: applied or refused.",
            ["outcome"],
            registry=self.registry,
        )
        self.retention_removed = Counter(
            "fal_proxy_retention_removed",
            "Database rows removed because they were past their time, by kind.",
            ["kind"],
            registry=self.registry,
        )
        # Finding a labelled counter costs more than counting.
        self._of_surface = lru_cache(maxsize=1024)(self._counters_of)

    def answered(self, surface: str, status: int, seconds: float) -> None:
        """Count one request, by the route that stands for its path."""
        requests, duration = self._of_surface(surface, status)
        requests.inc()
        duration.observe(seconds)

    def _counters_of(self, surface: str, status: int) -> tuple[Counter, Histogram]:
        return self.requests.labels(surface, status), self.seconds.labels(surface)

    async def share(self, folder: Path) -> None:
        """Add up with the other workers from here on, whose metrics meet in a folder."""
        self._of_workers = WorkerMetrics(self.registry, folder)
        await self._of_workers.start()

    async def unshare(self) -> None:
        """Leave what was counted to the other workers, at the end of this one."""
        if self._of_workers is not None:
            await self._of_workers.close()

    async def render(self) -> bytes:
        """All there is to know, in Prometheus's text format."""
        return generate_latest(self.registry) if self._of_workers is None else await self._of_workers.render()

    def upstream_refused(self, reason: str) -> None:
        self.upstream_refusals.labels(reason).inc()

    def rows_removed(self, kind: str, rows: int) -> None:
        self.retention_removed.labels(kind).inc(rows)

    def gauge(
        self,
        watched_jobs: Callable[[], int],
        open_streams: Callable[[], int],
        open_breakers: Callable[[], int],
        deferred: Callable[[], int],
    ) -> None:
        """Tell at each reading what goes on now."""
        for name, text, read in (
            ("fal_proxy_watched_jobs", "Jobs whose status stream is open at fal.", watched_jobs),
            ("fal_proxy_open_streams", "Event streams that callers hold open.", open_streams),
            ("fal_proxy_upstream_breakers_open", "Breakers that keep new calls from fal.", open_breakers),
            ("fal_proxy_ledger_deferred", "Ledger entries that wait for the database.", deferred),
            ("fal_proxy_tasks", "Tasks of the event loop.", lambda: len(asyncio.all_tasks())),
        ):
            Gauge(name, text, registry=self.registry).set_function(read)
