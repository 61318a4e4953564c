"""What is told to whoever is on call: logs without secrets, and metrics."""

from __future__ import annotations

import asyncio
import logging
import re
import sys
import time
from collections.abc import Callable, Iterable
from functools import lru_cache

import orjson
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from proxy.settings import LogSettings, Secret

#: What our own credentials look like, wherever they turn up: tenant keys, session tokens, what follows `/s/`,
#: `/uploads/` and `/multipart/` in a path, the query of a signed URL, an Authorization header.
_PATTERNS = re.compile(
    r"""fpk_[A-Za-z0-9_-]+
      | (?<=/s/)[^/\s"']+
      | (?<=/uploads/)[^/\s"']+
      | (?<=/multipart/)[^/\s"']+
      | (?<=\?)[^\s"']*(?:[Ss]ignature|[Tt]oken)[^\s"']*
      | \.?eyJ[A-Za-z0-9_-]{20,}(?:\.[A-Za-z0-9_-]+)+
      | \.eJ[A-Za-z0-9_-]{20,}(?:\.[A-Za-z0-9_-]+)+
      | (?i:(?<=authorization:\s)|(?<=\bKey\s)|(?<=\bBearer\s))[^\s"',]{16,}""",
    re.VERBOSE,
)
_SIGNS = (
    "fpk_", "/s/", "/uploads/", "/multipart/", "signature", "token", "eyj", ".ej", "authorization", "key ", "bearer ",
)  # fmt: skip
HIDDEN = "****"


class Redactor:
    """Removes secrets from a text: those it was told, and whatever has the form of one."""

    def __init__(self, secrets: Iterable[Secret]) -> None:
        values = {part for secret in secrets for part in _parts(secret.reveal()) if len(part) >= 8}
        longest_first = sorted(values, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def clean(self, text: str) -> str:
        if self._known is not None:
            text = self._known.sub(HIDDEN, text)
        # Looking for a few letters first spares most lines the search for whole patterns.
        lowered = text.lower()
        return _PATTERNS.sub(HIDDEN, text) if any(sign in lowered for sign in _SIGNS) else text


def _parts(secret: str) -> list[str]:
    """A key counts as a whole and by its secret half."""
    return [secret, secret.partition(":")[2]] if ":" in secret and "//" not in secret else [secret]


class _Formatter(logging.Formatter):
    """One line a record, JSON or text; the last thing before the output, so nothing passes it unredacted."""

    def __init__(self, form: str, redactor: Redactor) -> None:
        super().__init__()
        self._json = form == "json"
        self._redactor = redactor

    def format(self, record: logging.LogRecord) -> str:
        facts = {
            "time": f"{_second(int(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            facts["traceback"] = self.formatException(record.exc_info)
        return self._redactor.clean(self._line(facts))

    def _line(self, facts: dict[str, object]) -> str:
        if self._json:
            return orjson.dumps(facts, default=str).decode()
        time_, level, _, message, *rest = facts.values()
        names = list(facts)[4:]
        more = " ".join(f"{name}={value}" for name, value in zip(names, rest, strict=True))
        return f"{time_} {str(level).upper():7} {message} {more}".rstrip()


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
    for name in ("httpx", "httpcore", "aiohttp", "aiosqlite", "sqlalchemy", "alembic", "asyncio", "multipart"):
        logging.getLogger(name).setLevel(logging.WARNING)


class Metrics:
    """The process's counters; labels are of a small, fixed set, never an id of a caller."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
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
        self.connections = Gauge("fal_proxy_connections", "Connections that callers hold open.", registry=self.registry)
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
        # Finding a labelled counter costs more than counting.
        self._of_surface = lru_cache(maxsize=1024)(self._counters_of)

    def answered(self, surface: str, status: int, seconds: float) -> None:
        """Count one request, by the route that stands for its path."""
        requests, duration = self._of_surface(surface, status)
        requests.inc()
        duration.observe(seconds)

    def _counters_of(self, surface: str, status: int) -> tuple[Counter, Histogram]:
        return self.requests.labels(surface, status), self.seconds.labels(surface)

    def gauge(self, watched_jobs: Callable[[], int], open_streams: Callable[[], int]) -> None:
        """Tell at each reading what goes on now."""
        for name, text, read in (
            ("fal_proxy_watched_jobs", "Jobs whose status stream is open at fal.", watched_jobs),
            ("fal_proxy_open_streams", "Event streams that callers hold open.", open_streams),
            ("fal_proxy_tasks", "Tasks of the event loop.", lambda: len(asyncio.all_tasks())),
        ):
            Gauge(name, text, registry=self.registry).set_function(read)
