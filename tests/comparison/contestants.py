"""The two proxies that are compared, behind one small interface, and the calls that a browser would make to them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import httpx

from tests.comparison.entrants import WHOLE_KEY, Entrant
from tests.comparison.install import HOME, NODE
from tests.support.stack import Stack

PATH = "/api/fal/proxy"
CONNECTION_BROKE = "the connection broke"


class Contestant(Protocol):
    """A running proxy between a browser and the sandbox.

    Attributes:
        url: where the fal proxy protocol is spoken.
    """

    url: str

    def credential(self, user: str) -> Mapping[str, str]:
        """The headers by which a signed-in user's browser proves who it is."""
        ...


class FalProxy:
    """This project's proxy."""

    def __init__(self, stack: Stack) -> None:
        self.url = stack.url + PATH
        self._stack = stack

    def credential(self, user: str) -> Mapping[str, str]:
        return {"authorization": f"Bearer {self._stack.token(user)}"}


class Official:
    """A Node process with the official proxy, as `entrant` says."""

    def __init__(self, entrant: Entrant, sandbox_url: str) -> None:
        node = shutil.which("node")
        assert node is not None, "the comparison needs Node.js"
        script = ["--import", str(NODE / "sandbox-instead-of-fal.mjs"), str(NODE / "server.mjs")]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("FAL_")}
        self._process = subprocess.Popen(
            [node, *script, str(HOME), entrant.adapter, entrant.configuration],
            env={**inherited, **entrant.key, "SANDBOX_URL": sandbox_url},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdout is not None
        started = self._process.stdout.readline()
        assert started, "the official proxy did not start; is it installed (python -m tests.comparison.install)?"
        self.url = f"http://127.0.0.1:{json.loads(started)['port']}{PATH}"
        self._signs_in = entrant.configuration != "bare"

    def credential(self, user: str) -> Mapping[str, str]:
        return {"authorization": f"Bearer session-of-{user}"} if self._signs_in else {}

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


class Officials:
    """The official proxy's processes, kept for all tests; one that a test has ended is started again."""

    def __init__(self, sandbox_url: str) -> None:
        self._sandbox_url = sandbox_url
        self._kept: dict[tuple[str, str, bool], Official] = {}

    @contextlib.contextmanager
    def running(self, entrant: Entrant) -> Iterator[Official]:
        kind = (entrant.adapter, entrant.configuration, entrant.key == WHOLE_KEY)
        official = self._kept.pop(kind, None) or Official(entrant, self._sandbox_url)
        with contextlib.ExitStack() as stack:
            stack.callback(official.close)
            yield official
            if entrant.symptom != CONNECTION_BROKE:
                stack.pop_all()
                self._kept[kind] = official

    def close(self) -> None:
        for official in self._kept.values():
            official.close()


def call(
    contestant: Contestant,
    method: str,
    target: str,
    *,
    user: str | None = "alice",
    headers: Mapping[str, str] | None = None,
    **content: Any,
) -> httpx.Response:
    """Make one call as a fal client in a browser would; `user` None is a visitor who has not signed in.

    Raises:
        AssertionError: the proxy gave no answer, or none that can be read.
    """
    credential = contestant.credential(user) if user else {}
    sent = {
        "accept": "application/json",
        "content-type": "application/json",
        "x-fal-target-url": target,
        **credential,
        **(headers or {}),
    }
    try:
        # All of it is plain HTTP on the loopback: without `verify` the client need not load the authorities each time.
        with httpx.Client(timeout=60, trust_env=False, verify=False) as client:
            return client.request(method, contestant.url, headers=sent, **content)
    except httpx.TimeoutException as problem:
        raise AssertionError("no answer in time") from problem
    except httpx.DecodingError as problem:
        raise AssertionError("the answer cannot be unpacked") from problem
    except httpx.TransportError as problem:
        raise AssertionError(f"{CONNECTION_BROKE} ({type(problem).__name__})") from problem
