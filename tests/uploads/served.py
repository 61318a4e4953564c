"""A proxy in its own process, whose memory a test can measure and which it can kill."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import yaml

from proxy.auth.sessions import Sessions
from proxy.clock import SystemClock
from proxy.settings import Secret
from tests.support.images import PNG_SIGNATURE
from tests.support.limited import per, plan
from tests.support.programs import Program
from tests.support.sandbox import SandboxControl
from tests.support.secrets import SECRET
from tests.support.servers import free_port
from tests.support.stack import sandbox_environ
from tests.uploads.conftest import PNG

PLANS = {
    "plans": {"acme": plan(uploads={"max_bytes": 2**31}, quotas=[per("tenant", "upload_bytes", 10**12)])},
    "tenants": [{"id": "acme", "plan": "acme"}],
}


class Served(Program):
    def __init__(self, environ: dict[str, str], folder: Path, sandbox: SandboxControl) -> None:
        self.sandbox = sandbox
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.environ = {**environ, "PROXY_PORT": str(port), "PROXY_PUBLIC_URL": self.url}
        command = [sys.executable, "-m", "proxy", "serve"]
        super().__init__(command, port, folder / "said.log", environ=self.environ)
        sessions = Sessions((Secret(SECRET),), SystemClock())
        self.bearer = {"authorization": f"Bearer {sessions.mint('acme', 'alice', 86_400)[0]}"}

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", trust_env=False, verify=False, timeout=60).is_success
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        """Send SIGKILL, in the middle of its work."""
        self._running.send_signal(signal.SIGKILL)
        self._running.wait(timeout=180)
        self._process = None

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def slot(self, *, in_parts: bool = False) -> dict[str, str]:
        path = f"/fal/rest/storage/upload/initiate{'-multipart' if in_parts else ''}"
        wanted = {"content_type": "image/png"}
        answer = httpx.post(
            f"{self.url}{path}", json=wanted, headers=self.bearer, trust_env=False, verify=False, timeout=60
        )
        place: dict[str, str] = answer.raise_for_status().json()
        return place

    def memory(self, *, peak: bool = False) -> int:
        """Bytes resident now, or the most since `forget_peak`."""
        name = "VmHWM" if peak else "VmRSS"
        (line,) = [one for one in self._status() if one.startswith(name)]
        return int(line.split()[1]) * 1024

    def forget_peak(self) -> None:
        Path(f"/proc/{self._running.pid}/clear_refs").write_text("5")

    def _status(self) -> list[str]:
        return Path(f"/proc/{self._running.pid}/status").read_text().splitlines()


@contextmanager
def serving(sandbox: SandboxControl, folder: Path, plans: dict[str, Any] = PLANS, **environ: str) -> Iterator[Served]:
    config = folder / "plans.yaml"
    config.write_text(yaml.safe_dump(plans))
    known: dict[str, Any] = {
        **sandbox_environ(sandbox.url),
        "PROXY_SESSION_SECRETS": SECRET,
        "PROXY_DATABASE_URL": f"sqlite:///{folder / 'proxy.db'}",
        "PROXY_CONFIG": str(config),
        "PROXY_LOG_LEVEL": "warning",
    }
    proxy = Served({**known, **environ}, folder, sandbox)
    proxy.start()
    try:
        yield proxy
    finally:
        if proxy.is_running:
            proxy.stop()


def send(url: str, size: int) -> bytes:
    """PUT a picture of `size` bytes and return the answer."""
    with begun(url, size, size) as connection:
        return connection.recv(65536)


@contextmanager
def begun(url: str, size: int, most: int) -> Iterator[socket.socket]:
    """Send the first `most` bytes of a PUT; yield the connection for the rest."""
    parts, block, left = urlsplit(url), bytes(2**18), most
    lines = "".join(f"{name}: {value}\r\n" for name, value in {"host": "proxy", **PNG, "content-length": size}.items())
    with socket.create_connection((parts.hostname, parts.port or 80), 120) as connection:
        connection.sendall(f"PUT {parts.path} HTTP/1.1\r\n{lines}\r\n".encode() + PNG_SIGNATURE)
        left -= len(PNG_SIGNATURE)
        while left > 0:
            connection.sendall(block[:left])
            left -= len(block)
        yield connection
