"""Processes of `fal-proxy` that start at once, forked from one that has imported the program.

Importing takes longer than most commands run, and a test that kills dozens of servers would do little else.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

_PARENT = """
import json, os, signal, sys, traceback
import sqlalchemy.dialects.postgresql.asyncpg, sqlalchemy.dialects.sqlite
import proxy.app
from proxy.cli import main

started = set()

def reap(*_):
    for pid in list(started):
        try:
            is_over = os.waitpid(pid, os.WNOHANG)[0]
        except ChildProcessError:  # a signal came during this call, and that call of `reap` was faster
            is_over = True
        if is_over:
            started.discard(pid)

signal.signal(signal.SIGCHLD, reap)
for line in sys.stdin:
    order = json.loads(line)
    if (pid := os.fork()) == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.chdir(order["cwd"])
        os.environ.clear()
        os.environ.update(order["environ"])
        for number, path in enumerate(("/dev/null", order["stdout"], order["stderr"])):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), number)
        try:
            main(order["arguments"], prog_name="fal-proxy")
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
            code = 99
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if order["is_awaited"]:
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    else:
        started.add(pid)
        reap()
        print(pid, flush=True)
"""


class Forker:
    """Forks `fal-proxy` with the arguments, the whole environment, the folder and the files for output it is given."""

    def __init__(self, parent: subprocess.Popen[str]) -> None:
        self._parent = parent

    def run(self, arguments: Sequence[str], environ: Mapping[str, str], cwd: Path, stdout: Path, stderr: Path) -> int:
        """Wait for a command; its exit code."""
        return self._order(True, arguments, environ, cwd, stdout, stderr)

    def start(self, arguments: Sequence[str], environ: Mapping[str, str], cwd: Path, stdout: Path, stderr: Path) -> int:
        """The process id of a command that goes on; once it has ended, nothing is left of it."""
        return self._order(False, arguments, environ, cwd, stdout, stderr)

    def _order(
        self,
        is_awaited: bool,
        arguments: Sequence[str],
        environ: Mapping[str, str],
        cwd: Path,
        stdout: Path,
        stderr: Path,
    ) -> int:
        order = {
            "is_awaited": is_awaited,
            "arguments": arguments,
            "environ": dict(environ),
            "cwd": str(cwd),
            "stdout": str(stdout),
            "stderr": str(stderr),
        }
        assert self._parent.stdin is not None and self._parent.stdout is not None
        self._parent.stdin.write(json.dumps(order) + "\n")
        self._parent.stdin.flush()
        answer = self._parent.stdout.readline()
        assert answer, f"the process that forks has ended with {self._parent.wait(10)}"
        return int(answer)


@contextlib.contextmanager
def running_forker() -> Iterator[Forker]:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", _PARENT], stdin=pipe, stdout=pipe, text=True) as parent:
        yield Forker(parent)
        parent.communicate(timeout=60)
