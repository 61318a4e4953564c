"""A proxy as operators run it: `python -m proxy serve` in a process of its own, with its real log on stderr."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.support.servers import free_port


@contextmanager
def serving(folder: Path, environ: Mapping[str, str]) -> Iterator[tuple[str, Path]]:
    """Run the proxy until the block ends; its base URL and the file with all that it said."""
    port, log = free_port(), folder / "said.log"
    own = {"PROXY_PORT": str(port), "PROXY_DATABASE_URL": f"sqlite:///{folder / 'proxy.db'}"}
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "proxy", "serve"], env={**inherited, **environ, **own}, stdout=output, stderr=output
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_it_answers(url, process, log)
            yield url, log
        finally:
            process.terminate()
            process.wait(timeout=30)


def _wait_until_it_answers(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            httpx.get(f"{url}/livez", trust_env=False).raise_for_status()
            return
        except httpx.TransportError:
            time.sleep(0.02)
    raise TimeoutError(log.read_text())
