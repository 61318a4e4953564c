"""The kit for @fal-ai/client: one session for all calls, renewed early, and another one after a 401."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.clients.driver import Driver, driving
from tests.clients.expectations import HELD, asked, describes_the_picture, environment
from tests.clients.install import KITS, NODE
from tests.clients.recordings import Recording
from tests.examples.projects import node_project
from tests.support.limited import limited_proxy, meanwhile, plan
from tests.support.sandbox import SandboxControl
from tests.support.stack import Stack
from tests.support.waiting import wait_until

pytestmark = pytest.mark.tools

ROOT = Path(__file__).parents[2]
KIT = ROOT / "examples" / "client"
LIBRARY = NODE / "node_modules" / "client-1.10.1"
TSC = KITS / "node_modules" / ".bin" / "tsc"
PROTOCOL, RENEW = "/api/fal/proxy", "/v1/sessions/renew"
TTL = 600


@pytest.fixture
def proxy(sandbox: SandboxControl, tmp_path: Path) -> Iterator[Stack]:
    """A proxy whose clock starts at the same time as the device's."""
    plans = {"acme": plan(session_ttl_seconds=TTL, max_session_age_seconds=1500)}
    with limited_proxy(sandbox, tmp_path, plans) as stack:
        yield stack


@pytest.fixture
def app(proxy: Stack) -> Iterator[Driver]:
    command = ["node", str(ROOT / "tests" / "examples" / "client_kit.mjs"), str(KIT / "index.js"), str(LIBRARY)]
    usual = {"proxyUrl": f"{proxy.url}{PROTOCOL}", "tenantKey": proxy.tenant_key(), "ttl": TTL, "input": asked()}
    usual["startsAt"] = proxy.clock.now()
    with driving("kit", command, environment(FAL_KEY="key-id-of-tests:key-secret-of-tests"), **usual) as driver:
        driver.outcome("connect")
        yield driver


def sent(app: Driver, path: str = PROTOCOL) -> list[dict[str, Any]]:
    return [one for one in app.outcome("facts")["sent"] if one["pathname"] == path]


def minted(app: Driver) -> int:
    count: int = app.outcome("facts")["minted"]
    return count


def tokens(app: Driver) -> list[str]:
    return [one["headers"]["x-fal-proxy-session"] for one in sent(app)]


def test_parallel_calls_share_one_session(app: Driver) -> None:
    assert all(describes_the_picture(output) for output in app.outcome("run", times=5))
    assert minted(app) == 1 and len(set(tokens(app))) == 1
    app.outcome("run")
    assert minted(app) == 1


def test_a_session_is_renewed_early_and_once_for_all_calls(app: Driver) -> None:
    app.outcome("run")
    app.outcome("wait", seconds=TTL - 90)
    app.outcome("run")
    assert sent(app, RENEW) == []
    app.outcome("wait", seconds=60)
    app.outcome("run", times=5)
    wait_until(lambda: [one["status"] for one in sent(app, RENEW)] == [201], "it is not renewed once")
    app.outcome("run")
    assert minted(app) == 1 and {one["status"] for one in sent(app)} == {200}
    # The calls did not wait for the renewal, and the next one has it.
    assert tokens(app)[-1] not in tokens(app)[:2]


def test_a_short_session_is_renewed_at_half_of_its_life(app: Driver) -> None:
    """Not at each call, as a renewal a minute before the end would be."""
    app.outcome("connect", ttl=60)
    app.outcome("run")
    app.outcome("wait", seconds=10)
    app.outcome("run")
    assert sent(app, RENEW) == []
    app.outcome("wait", seconds=35)
    app.outcome("run")
    wait_until(lambda: len(sent(app, RENEW)) == 1, "it is not renewed")


def test_a_session_that_cannot_be_renewed_is_replaced(app: Driver, proxy: Stack) -> None:
    app.outcome("run")
    with proxy.client(tokens(app)[0]) as same:
        assert same.delete("/v1/session").status_code == 204
    app.outcome("wait", seconds=TTL - 30)
    # A call tries the old session while a new one is fetched, gets a 401, and waits for the new one.
    assert describes_the_picture(app.outcome("run")[0])
    wait_until(lambda: [one["status"] for one in sent(app, RENEW)] == [401], "it is not tried")
    assert minted(app) == 2


def test_a_session_that_is_over_is_not_sent(app: Driver) -> None:
    app.outcome("run")
    app.outcome("wait", seconds=TTL + 30)
    app.outcome("run", times=5)
    assert minted(app) == 2 and len(set(tokens(app))) == 2
    assert {one["status"] for one in sent(app)} == {200} and sent(app, RENEW) == []


@pytest.mark.parametrize("times", [1, 5])
def test_calls_that_got_a_401_are_repeated_with_one_new_session(app: Driver, proxy: Stack, times: int) -> None:
    """The proxy's clock says that the session is over, and the device's does not."""
    app.outcome("run")
    proxy.clock.advance(TTL)
    proxy.sandbox.forget()
    assert all(describes_the_picture(output) for output in app.outcome("run", times=times))
    assert minted(app) == 2
    assert sorted(one["status"] for one in sent(app))[1:] == [200] * times + [401] * times
    # A 401 runs nothing.
    assert len([one for one in proxy.sandbox.requests() if one["host"] == "run"]) == times


def test_a_call_is_repeated_once(app: Driver) -> None:
    app.outcome("connect", tokens=["nonsense"])
    error = app.error("run")
    assert (error["name"], error["status"]) == ("ApiError", 401)
    assert minted(app) == 2 and [one["status"] for one in sent(app)] == [401, 401]


def test_an_app_learns_why_there_is_no_session(app: Driver, proxy: Stack) -> None:
    app.outcome("connect", failsAfter=1)
    app.outcome("run")
    proxy.clock.advance(TTL)
    assert app.error("run")["message"] == "you are logged out"


def test_a_session_of_a_device_whose_clock_is_wrong_is_used_to_its_end(app: Driver) -> None:
    app.outcome("wait", seconds=10 * TTL)
    for _ in range(3):
        app.outcome("run")
    assert minted(app) == 1 and sent(app, RENEW) == []


@pytest.mark.parametrize("mode", ["polling", "streaming"])
def test_a_job_outlives_its_session(app: Driver, proxy: Stack, mode: str) -> None:
    ask = partial(app.outcome, "subscribe", input=asked(HELD), mode=mode, secondsOnUpdate=TTL)
    with meanwhile(ask, proxy.sandbox) as (job, request):
        statuses = lambda: [one["status"] for one in proxy.sandbox.jobs() if one["id"] == request]  # noqa: E731
        wait_until(lambda: statuses() == ["IN_PROGRESS"], "the job does not begin")
        proxy.clock.advance(TTL)
        proxy.sandbox.move_job(request, "COMPLETED")
        assert describes_the_picture(job.result(60))
    assert len(set(tokens(app))) == 2 or minted(app) == 2


def test_the_session_goes_to_the_proxy_alone_and_the_key_nowhere(app: Driver) -> None:
    """A server that renders pages may have a FAL_KEY in its environment, which the client looks for."""
    app.outcome("upload")
    app.outcome("run")
    everything = app.outcome("facts")["sent"]
    assert {one["pathname"].split("/")[1] for one in everything} == {"api", "uploads"}
    for one in everything:
        names = {name.lower() for name in one["headers"]}
        assert "authorization" not in names
        assert ("x-fal-proxy-session" in names) is (one["pathname"] == PROTOCOL)


def test_a_backend_that_gives_no_session_is_an_error(app: Driver) -> None:
    app.outcome("connect", tokens=[None])
    error = app.error("run")
    assert error["name"] == "SessionError" and "{token, expires_at}" in error["message"]
    assert sent(app) == []


def test_the_recorded_requests_of_expo_are_those_of_the_kit(app: Driver) -> None:
    """Apart from the headers that a phone's transport adds."""
    app.outcome("run")
    app.outcome("subscribe", mode="polling", secondsOnUpdate=0)
    recording, kinds = Recording("expo"), set()
    for one in sent(app):
        names = {name.lower() for name in one["headers"]}
        kind = kind_of(one["method"], one["headers"]["x-fal-target-url"])
        assert names == recording.header_names(kind) - {"host", "connection", "accept-encoding", "content-length"}
        kinds.add(kind)
    assert kinds == {"run", "submit", "status", "result"}


def kind_of(method: str, target: str) -> str:
    if method == "POST":
        return "submit" if "queue.fal.run" in target else "run"
    return "status" if "/status" in target else "result"


PROGRAM = """
import { createFalClient, type FalClient } from "@fal-ai/client";
import { withSession, type Session } from "@fal-proxy/client";
import { useFalProxy } from "@fal-proxy/client/react";

const getSession = async (): Promise<Session> => (await fetch("/session")).json();
const fal: FalClient = createFalClient(withSession(getSession, { proxyUrl: "/api/fal/proxy" }));
createFalClient(withSession("/session", { proxyUrl: "/api/fal/proxy" }));
// @ts-expect-error
withSession(getSession, { url: "/api/fal/proxy" });
// @ts-expect-error
withSession(() => "token", { proxyUrl: "/api/fal/proxy" });

export function Ask(): string | undefined {
  const call = useFalProxy(fal, "fal-ai/llava-next");
  call.submit({ prompt: "?", image_url: new Blob() });
  // @ts-expect-error
  call.submit({ image_url: new Blob() });
  // @ts-expect-error
  call.result.output;
  if (call.status === "queued") return `${call.position}`;
  if (call.status === "failed") return `${call.error.error_type} ${call.error.retry_after}`;
  return call.status === "done" ? call.result.output : undefined;
}

export function AskAnother(): unknown {
  const { submit, result } = useFalProxy(fal, "fal-ai/any-other-model");
  submit({ anything: 1 });
  return result.anything;
}
"""


def test_the_types_are_those_of_the_client() -> None:
    """Each line below `@ts-expect-error` is one; the compiler complains of those that are not."""
    options = "--noEmit --strict --module nodenext --target es2022 --lib es2022,dom"
    with node_project() as project:
        (project / "app.mts").write_text(PROGRAM)
        command = [str(TSC), *options.split(), "app.mts"]
        done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
