"""Start the processes of a benchmark, each on the core it is given, and say what machine it was."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
START_SECONDS = 60
#: How exactly it is known when a process listens. A pause that grows would count as a start.
LOOK_SECONDS = 0.002


@contextlib.contextmanager
def running(
    command: Sequence[str | Path],
    *,
    port: int,
    core: int,
    env: Mapping[str, str] | None = None,
    log: Path,
    folder: Path = ROOT,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` pinned to `core` until the block ends, its output going to `log`; yields when it listens."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["taskset", "--cpu-list", str(core), *command],
            cwd=folder,
            env=environment(env or {}),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait_until_listening(process, port, log)
            yield process
        finally:
            process.terminate()
            process.wait(timeout=START_SECONDS)


@contextlib.contextmanager
def pinned(core: int) -> Iterator[None]:
    """Run this process on `core` until the block ends, with the processes that it starts meanwhile."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """This process's environment and more. Python keeps what it compiles, as the image has it compiled."""
    return {**{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}, **more}


def _wait_until_listening(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        problem = f"{process.args!r} does not listen on {port}:\n{log.read_text(errors='replace')}"
        assert process.poll() is None and time.monotonic() < deadline, problem
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(LOOK_SECONDS)


def static_fal(
    port: int, core: int, log: Path, *, delay_ms: int = 0
) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    """The static upstream that everything is measured in front of; it answers after `delay_ms`."""
    command = [sys.executable, "-m", "tests.bench.static_upstream", str(port), str(delay_ms)]
    return running(command, port=port, core=core, log=log)


def cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    """Processor time that the process has used, in user space and in the kernel."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(process: subprocess.Popen[bytes]) -> int:
    """Memory that the process holds."""
    return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def machine() -> dict[str, object]:
    """What a reader needs to judge the numbers by."""
    models = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_version()} ({_build_options()})",
    }


def _build_options() -> str:
    """How the interpreter was compiled. A distribution may optimise it further without saying so here."""
    given = sysconfig.get_config_var("CONFIG_ARGS") or ""
    optimised = [option for option in ("--enable-optimizations", "--with-lto") if option in given]
    return " ".join([platform.python_compiler(), *optimised, sysconfig.get_config_var("OPT") or ""]).strip()


def versions(*packages: str) -> dict[str, str]:
    """Installed versions; what is not installed is left out."""
    found = {}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
