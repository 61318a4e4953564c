"""A fal client in a long-lived process of its own: a JSON question a line in, a JSON answer a line out."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from typing import IO, Any


class Driver:
    """Runs the scenarios of one client.

    A question is `{"scenario", …}`, filled up with what `usual` says; an answer `{"outcome": …}`, or `{"error": {…}}`
    with what an app would catch.
    """

    def __init__(
        self, name: str, process: subprocess.Popen[str], complaints: IO[bytes], usual: Mapping[str, Any]
    ) -> None:
        self.name = name
        self._process = process
        self._complaints = complaints
        self._usual = usual
        self._busy_with = ""

    def outcome(self, scenario: str, **arguments: Any) -> Any:
        """The result of a scenario in which the client raises nothing."""
        answer = self._ask(scenario, arguments)
        assert "error" not in answer, f"{self.name} {scenario} failed: {answer['error']}"
        return answer["outcome"]

    def error(self, scenario: str, **arguments: Any) -> dict[str, Any]:
        """The error that the client raised."""
        answer = self._ask(scenario, arguments)
        assert "error" in answer, f"{self.name} {scenario} did not fail: {answer['outcome']}"
        error: dict[str, Any] = answer["error"]
        return error

    def _ask(self, scenario: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        assert not self._busy_with, f"{self.name} never came back from {self._busy_with}"
        assert self._process.stdin is not None and self._process.stdout is not None
        self._busy_with = scenario
        # If the process has ended, its output below says more than a broken pipe.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"scenario": scenario, **self._usual, **arguments}) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"{self.name} ended with {self._process.wait()}:\n{self._last_words()}"
        self._busy_with = ""
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        self._complaints.seek(0)
        return self._complaints.read().decode(errors="replace")[-4000:]


@contextlib.contextmanager
def driving(name: str, command: list[str], environment: Mapping[str, str], **usual: Any) -> Iterator[Driver]:
    """Start a client's process; it ends when its input does."""
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile() as complaints,
        subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=complaints, text=True) as process,
    ):
        try:
            yield Driver(name, process, complaints, usual)
            process.communicate(timeout=60)
        finally:
            process.kill()
