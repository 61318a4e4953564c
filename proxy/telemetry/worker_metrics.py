"""One answer to `/metrics` for all workers of a server.

Each worker counts in its own memory. The worker that is scraped asks the others over Unix sockets in a private folder,
and adds up. What a worker gives it also writes to a file there, so that a total that was seen once never falls:
Prometheus takes a fall for a restart, and invents a rate.

prometheus_client's own way, values in mapped files, costs each request: a counter and a histogram take 4.7 µs, which is
several per cent of a poll that is answered from memory. Asking costs a request nothing, and gauges are read at the
scrape, as in a single process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import orjson
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.registry import Collector

#: A worker that hangs does not answer; what it gave last counts.
ANSWER_SECONDS = 1.0
#: The file of what dead workers had counted.
ENDED = "ended.json"
NOTHING = b'{"last": "", "report": []}'
#: What is not added up.
MERGED: dict[str, Callable[[float, float], float]] = {
    "process_start_time_seconds": min,
    "fal_proxy_build_info": max,
    "fal_proxy_alert_oldest_waiting_seconds": max,
}
_log = logging.getLogger(__name__)

#: Families of samples, as JSON has them: `{name, help, type, samples: [[name, labels, value]]}`.
Report = list[dict[str, Any]]


class WorkerMetrics:
    """The metrics of this process, given to the other workers, and theirs.

    Args:
        folder: the same for all workers of a server, and open to no other program.
    """

    def __init__(self, registry: CollectorRegistry, folder: Path) -> None:
        self._registry = registry
        # Process ids are used again; what the last owner of this one counted stays apart.
        self._socket = folder / f"{os.getpid()}-{secrets.token_hex(4)}.sock"
        self._file = self._socket.with_suffix(".json")
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Answer the other workers from here on. One that cannot, as the folder is gone, serves all the same."""
        try:
            self._server = await asyncio.start_unix_server(self._answer, self._socket)
        except OSError as problem:
            _log.warning("metrics not shared", extra={"log_fields": {"problem": problem.strerror or str(problem)}})

    async def close(self) -> None:
        """Answer no more; what was counted stays."""
        if self._server is not None:
            self._server.close()
        self._socket.unlink(missing_ok=True)
        self._save()

    async def render(self) -> bytes:
        """Render the metrics of all workers, in the text format."""
        return _text(await self.read())

    async def read(self) -> Report:
        """Read the metrics of all workers, also of those that have died."""
        others = [path for path in self._socket.parent.glob("*.sock") if path != self._socket]
        answers = await asyncio.gather(*map(_ask, others))
        living = {path.stem: answer for path, answer in zip(others, answers, strict=True) if answer}
        living[self._socket.stem] = self._save()
        dead = _read_dead(self._socket.parent, living.keys())
        return _sum([*map(orjson.loads, living.values()), *map(_counts, dead)])

    async def _answer(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError), contextlib.closing(writer):
            writer.write(self._save())
            await writer.drain()

    def _save(self) -> bytes:
        """Write what is counted now to the file, and return it."""
        text = orjson.dumps(read_registry(self._registry))
        try:
            _write(self._file, text)
        except OSError as problem:
            _log.warning("metrics not kept", extra={"log_fields": {"problem": problem.strerror}})
        return text


def render_registry(registry: CollectorRegistry) -> bytes:
    """Render the metrics of a process that has no other workers beside it, in the text format."""
    return _text(read_registry(registry))


def retire(folder: Path, pid: int) -> None:
    """Move the counts of a worker that has died to the file of all dead ones; its supervisor calls this."""
    try:
        for path in folder.glob(f"{pid}-*.sock"):
            path.unlink(missing_ok=True)
        for path in folder.glob(f"{pid}-*.json"):
            ended = orjson.loads(_read(folder / ENDED) or NOTHING)
            report = _sum([ended["report"], _counts(orjson.loads(path.read_bytes()))])
            # A reader that finds both takes one of them.
            _write(folder / ENDED, orjson.dumps({"last": path.stem, "report": report}))
            path.unlink()
    except OSError as problem:
        _log.warning("metrics not kept", extra={"log_fields": {"problem": problem.strerror}})


def _read_dead(folder: Path, living: Iterable[str]) -> list[Report]:
    """Read what workers counted that no longer answer.

    The files of single workers are read first: one that `retire` moves meanwhile is found at one place at least.
    """
    paths = [path for path in folder.glob("*-*.json") if path.stem not in living]
    reports = {path.stem: text for path in paths if (text := _read(path))}
    ended = orjson.loads(_read(folder / ENDED) or NOTHING)
    reports.pop(ended["last"], None)
    return [*map(orjson.loads, reports.values()), ended["report"]]


async def _ask(path: Path) -> bytes:
    """Ask a worker what it has counted; nothing if it does not answer."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            reader, writer = await asyncio.open_unix_connection(path)
            with contextlib.closing(writer):
                return await reader.read(-1)
    except (OSError, TimeoutError):
        _log.warning("metrics of a worker missing", extra={"log_fields": {"worker": path.stem}})
        return b""


def read_registry(registry: CollectorRegistry) -> Report:
    """Read what a process has counted."""
    return [
        {
            "name": family.name,
            "help": family.documentation,
            "type": family.type,
            # When each was first counted says nothing of a sum.
            "samples": [
                [sample.name, sample.labels, sample.value]
                for sample in family.samples
                if not sample.name.endswith("_created")
            ],
        }
        for family in registry.collect()
    ]


def _counts(report: Report) -> Report:
    """Keep the totals of a worker that has died, and not its gauges, which say what went on."""
    return [family for family in report if family["type"] != "gauge"]


def _sum(reports: Iterable[Report]) -> Report:
    """Merge reports into one, in which samples of the same name and labels are added up."""
    families: dict[str, dict[str, Any]] = {}
    values: dict[tuple[str, str, tuple[tuple[str, str], ...]], float] = {}
    for family in (family for report in reports for family in report):
        families.setdefault(family["name"], family)
        for name, labels, value in family["samples"]:
            key = (family["name"], name, tuple(labels.items()))
            if key in values and (merge := MERGED.get(name)):
                values[key] = merge(values[key], value)
            else:
                values[key] = values.get(key, 0.0) + value
    samples: dict[str, list[Any]] = {name: [] for name in families}
    for (family_name, name, labels), value in values.items():
        samples[family_name].append([name, dict(labels), value])
    return [{**family, "samples": samples[name]} for name, family in families.items()]


class _Reported(Collector):
    def __init__(self, report: Report) -> None:
        self._report = report

    def collect(self) -> Iterable[Metric]:
        for family in self._report:
            metric = Metric(family["name"], family["help"], family["type"])
            for name, labels, value in family["samples"]:
                metric.add_sample(name, labels, value)
            yield metric


def _text(report: Report) -> bytes:
    registry = CollectorRegistry()
    registry.register(_Reported(report))
    return generate_latest(registry)


def _read(path: Path) -> bytes:
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes()
    return b""


def _write(path: Path, text: bytes) -> None:
    """Replace a file as a whole, so that no half of it is read."""
    fresh = path.with_suffix(".new")
    fresh.write_bytes(text)
    fresh.replace(path)
