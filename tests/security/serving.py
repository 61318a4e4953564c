"""A proxy as operators run it: `python -m proxy serve` in a process of its own, with its real log on stderr."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.support.servers import free_port
from tests.support.waiting import wait_until


@contextmanager
def serving(folder: Path, environ: Mapping[str, str]) -> Iterator[tuple[str, Path]]:
    """Run the proxy until the block ends; yield its base URL and the file with its log."""
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
            process.wait(timeout=180)


def _wait_until_it_answers(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            httpx.get(f"{url}/livez", trust_env=False, verify=False, timeout=60).raise_for_status()
        except httpx.TransportError:
            return False
        return True

    wait_until(answers, log.read_text)
