"""Uploads beside nginx: `python -m tests.bench.uploads`. Needs nginx and taskset.

One file of 200 MiB at a time goes to a store that only reads it, once through this proxy, with everything on, and once
through nginx, that passes bytes on unbuffered and checks nothing. Both are pinned to core 0; the sender and the store
share core 1. Ratios are of megabytes per second within one run, the median of the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from tests.bench.__main__ import LOAD_CORE, PROXY_CORE
from tests.bench.contestants import EVERYTHING_ON, Contestant, fal_proxy
from tests.bench.processes import ROOT, machine, running, static_fal, versions
from tests.support.images import PNG_SIGNATURE
from tests.support.servers import free_port

FILE_BYTES = 200 * 2**20

BLOCK = bytes(2**18)
LIMITS = (
    EVERYTHING_ON
    + f"""\
      - {{per: subject, unit: upload_bytes, limit: 900000000000, window: day}}
    uploads: {{max_bytes: {FILE_BYTES}}}
"""
)
NGINX = """\
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
events {{ worker_connections 64; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  client_max_body_size 0;
  client_body_buffer_size 256k;
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass {upstream};
      proxy_http_version 1.1;
      proxy_request_buffering off;
    }}
  }}
}}
"""
#: Where the next file is to be sent.
Place = Callable[[], str]


@contextlib.contextmanager
def nginx(upstream: str, core: int, folder: Path) -> Iterator[str]:
    """The URL by which nginx takes files to the store."""
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, port=port, upstream=upstream))
    command = ["nginx", "-c", config, "-e", folder / "nginx.log"]
    with running(command, port=port, core=core, log=folder / "nginx-said.log"):
        yield f"http://127.0.0.1:{port}/cdn/files/a.png"


def place_at(proxy: Contestant) -> str:
    """A slot of the caller's own."""
    response = httpx.post(
        proxy.url,
        headers={
            "x-fal-target-url": "https://rest.fal.ai/storage/upload/initiate",
            "authorization": f"Bearer {proxy.token}",
        },
        json={"content_type": "image/png", "file_name": "a.png"},
        trust_env=False,
    )
    return str(response.raise_for_status().json()["upload_url"])


def send(url: str) -> float:
    """Send one file; the seconds until its answer."""
    parts = urlsplit(url)
    headers = f"host: bench\r\ncontent-type: image/png\r\ncontent-length: {FILE_BYTES}"
    head = f"PUT {parts.path} HTTP/1.1\r\n{headers}\r\n\r\n"
    with socket.create_connection((parts.hostname, parts.port or 80), 60) as connection:
        started = time.perf_counter()
        connection.sendall(head.encode() + PNG_SIGNATURE + BLOCK[len(PNG_SIGNATURE) :])
        for _ in range(FILE_BYTES // len(BLOCK) - 1):
            connection.sendall(BLOCK)
        answer = connection.recv(65536)
        seconds = time.perf_counter() - started
    if not answer.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"the file was not taken: {answer[:500]!r}")
    return seconds


def measure(contestants: dict[str, Place], rounds: int) -> dict[str, list[float]]:
    """Contestant -> megabytes per second, one figure a round."""
    os.sched_setaffinity(0, {LOAD_CORE})
    results: dict[str, list[float]] = {name: [] for name in contestants}
    for place in contestants.values():
        send(place())  # warms up what is compiled while it runs
    for _ in range(rounds):
        for name, place in contestants.items():
            results[name].append(round(FILE_BYTES / send(place()) / 1e6, 1))
    return results


def table(results: dict[str, list[float]]) -> str:
    *_, other = results
    lines = [f"{'one file of 200 MiB':24} {'MB/s':>8}   share of {other}"]
    for name, speeds in results.items():
        ratio = statistics.median(ours / theirs for ours, theirs in zip(speeds, results[other], strict=True))
        lines.append(f"{name:24} {statistics.median(speeds):8.0f}   {ratio:.2f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.uploads", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bench-uploads.json")
    options = parser.parse_args()
    report: dict[str, Any] = {"machine": machine(), "versions": versions("fal-proxy", "uvicorn", "uvloop")}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port = free_port()
        stack.enter_context(static_fal(port, LOAD_CORE, folder / "static-upstream.log"))
        upstream = f"http://127.0.0.1:{port}"
        ours = stack.enter_context(fal_proxy(upstream, PROXY_CORE, folder, limits=LIMITS))
        beside = stack.enter_context(nginx(upstream, PROXY_CORE, folder))
        results = measure({ours.name: lambda: place_at(ours), "nginx": lambda: beside}, options.rounds)
    print(table(results))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report | {"results": results}, indent=2) + "\n")
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
