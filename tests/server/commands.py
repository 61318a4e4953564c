"""The command line as its users run it: every command a process of its own, with an environment given in full."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.support.forking import Forker
from tests.support.secrets import SECRET
from tests.support.servers import free_port
from tests.support.waiting import wait_until

PROXY = (sys.executable, "-m", "proxy")

#: On plain http there is nothing to verify, and loading the authorities of the system takes its time.
PLAINLY: dict[str, Any] = {"trust_env": False, "verify": False, "timeout": 180}
SERVABLE = {"FAL_KEY": "key-id-of-tests:key-secret-of-tests", "PROXY_SESSION_SECRETS": SECRET}


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


class Commands:
    """Runs `fal-proxy …`."""

    def __init__(self, forker: Forker, folder: Path) -> None:
        self._forker = forker
        self._folder = folder

    def __call__(self, *arguments: str, environ: Mapping[str, str], cwd: Path) -> Done:
        stdout, stderr = self._folder / "stdout", self._folder / "stderr"
        for path in (stdout, stderr):
            path.write_bytes(b"")
        code = self._forker.run(arguments, environ, cwd, stdout, stderr)
        return Done(code, stdout.read_text(), stderr.read_text())


class Server:
    """A `fal-proxy serve`, `dev` or `sandbox` in a process of its own; its output goes to files in `folder`."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, folder: Path) -> None:
        self.process = process
        self.url = url
        self._folder = folder

    @property
    def stdout(self) -> str:
        return (self._folder / "server.out").read_text()

    @property
    def stderr(self) -> str:
        return (self._folder / "server.err").read_text()

    def wait_until_live(self, path: str = "/livez") -> None:
        def live() -> bool:
            assert self.process.poll() is None, self.stderr
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(self.url + path, **PLAINLY).status_code < 500
            return False

        wait_until(live, "the server did not start")

    def stop(self, signal: int, seconds: float = 180) -> int:
        """Send a signal; the exit code."""
        self.process.send_signal(signal)
        return self.process.wait(timeout=seconds)


@contextlib.contextmanager
def serving(
    *command: str,
    environ: Mapping[str, str],
    folder: Path,
    live_at: str = "/livez",
    port: int | None = None,
    open_files: str | None = None,
    program: Sequence[str] = PROXY,
) -> Iterator[Server]:
    """`fal-proxy <command>` on a free port, in `folder`, once it answers; it ends with the block at the latest.

    `open_files` is the limit of the process, as `ulimit -n` sets it. `program` is what is run instead of `fal-proxy`.
    """
    port = port or free_port()
    command = (*program, *command)
    if open_files is not None:
        command = ("prlimit", f"--nofile={open_files}", *command)
    variables = {"PROXY_PORT": str(port), "PATH": os.environ["PATH"], **environ}
    with (
        (folder / "server.out").open("wb") as out,
        (folder / "server.err").open("wb") as err,
        subprocess.Popen(command, env=variables, cwd=folder, stdout=out, stderr=err) as process,
    ):
        server = Server(process, f"http://127.0.0.1:{port}", folder)
        try:
            server.wait_until_live(live_at)
            yield server
        finally:
            process.kill()
