"""The overview: current figures, sent again when they change, as long as the session is valid."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import httpx

from proxy.console.overview import MOST_STREAMS_PER_SESSION
from proxy.console.sessions import IDLE_SECONDS
from tests.clients.expectations import HELD
from tests.console.operators import Operator, assert_refused, new_token, operator_of, revoke_token
from tests.support.limited import Client
from tests.support.stack import Stack
from tests.support.waiting import wait_until


class Events:
    """The events of a stream, one after the other."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self._lines = answer.iter_lines()

    def next_figures(self) -> str:
        """The data of the next event of figures."""
        return self._next("figures")

    def next_error(self) -> str:
        return self._next("error")

    def _next(self, name: str) -> str:
        found, data = "", []
        for line in self._lines:
            if line.startswith("event: "):
                found = line.removeprefix("event: ")
            elif line.startswith("data: "):
                data.append(line.removeprefix("data: "))
            elif not line and data:
                if found == name:
                    return "\n".join(data)
                found, data = "", []
        raise AssertionError(f"the stream ended without {name}")


@contextlib.contextmanager
def live(operator: Operator) -> Iterator[Events]:
    with operator.http.stream("GET", "/console/live", headers={"accept": "text/event-stream"}) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield Events(answer)


def figure(page: str, what: str) -> float:
    match = re.search(rf'<span class="figure">([0-9.,]+)</span> {what}', page)
    assert match, page
    return float(match[1].replace(",", ""))


def test_the_page_shows_the_figures_of_today(proxy: Stack, viewer: Operator) -> None:
    with Client(proxy, proxy.token()) as caller:
        assert caller.run().status_code == 200
        caller.http.get("/v1/jobs", params={"limit": "x"})
    proxy.clock.advance(3)
    page = viewer.get("/console").text
    assert figure(page, "calls today") >= 1 and figure(page, "tenants") == 2
    assert "fal-ai/llava-next</th>" in page and "healthy" in page
    refusals = dict(re.findall(r'<code>([a-z_]+)</code></th><td class="number">(\d+)<', page))
    assert int(refusals["bad_request"]) >= 1


def test_figures_are_sent_again_when_they_change(proxy: Stack, viewer: Operator) -> None:
    with live(viewer) as events, Client(proxy, proxy.token()) as caller:
        before = figure(events.next_figures(), "jobs in flight")
        job = caller.submitted(HELD)
        proxy.clock.advance(3)
        after = figure(events.next_figures(), "jobs in flight")
        assert after == before + 1
        caller.cancel(job)


def test_a_stream_ends_with_its_token(proxy: Stack) -> None:
    with operator_of(proxy, new_token(proxy, "watcher", "viewer")) as watcher, live(watcher) as events:
        events.next_figures()
        revoke_token(proxy, "watcher")
        proxy.clock.advance(3)
        assert "unauthenticated" in events.next_error()


def test_an_open_page_keeps_no_session_alive(proxy: Stack, viewer: Operator) -> None:
    with live(viewer) as events:
        events.next_figures()
        proxy.clock.advance(IDLE_SECONDS + 1)
        assert "session_expired" in events.next_error()


def test_streams_are_limited_per_session(proxy: Stack, viewer: Operator, admin: Operator) -> None:
    with contextlib.ExitStack() as streams:
        # The iterators are kept, because the end of one closes its stream.
        opened = [streams.enter_context(live(viewer)) for _ in range(MOST_STREAMS_PER_SESSION)]
        assert all(figure(events.next_figures(), "tenants") for events in opened)
        with viewer.http.stream("GET", "/console/live") as answer:
            assert (answer.status_code, answer.headers["x-fal-error-type"]) == (429, "rate_limited")
        # Other sessions are not affected.
        opened.append(streams.enter_context(live(admin)))
        assert figure(opened[-1].next_figures(), "tenants") == 2

    def is_open_again() -> bool:
        with viewer.http.stream("GET", "/console/live") as answer:
            return answer.status_code == 200

    wait_until(is_open_again, "the streams that were closed still count")


def test_a_stranger_gets_no_figures(stranger: Operator) -> None:
    assert stranger.get("/console/live").status_code == 303
    assert_refused(stranger.get("/console/live", origin="https://evil.example"), 403, "not_allowed")
