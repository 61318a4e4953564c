"""fal's platform API as the proxy reads it: pages, days, amounts, and every wrong answer."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import date
from decimal import Decimal
from typing import Any

import anyio
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from proxy.errors import (
    BadRequest,
    BadUpstream,
    ProxyError,
    UpstreamBusy,
    UpstreamRejectedKey,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from proxy.settings import FalSettings, Secret
from proxy.upstream.platform import MOST_BYTES, MOST_PAGES, DayOfEndpoint, FalPlatform
from tests.support.servers import free_port, running

pytestmark = pytest.mark.anyio

KEY = "admin-id:admin-secret"
NEXT, OTHER = "fal-ai/llava-next", "fal-ai/flux/dev"
FIRST, LAST = date(2026, 1, 30), date(2026, 2, 2)


def platform_at(url: str, key: str | None = KEY, seconds: float = 10.0) -> FalPlatform:
    hosts = dict.fromkeys(("run_url", "queue_url", "rest_url", "cdn_url"), url)
    secret = None if key is None else Secret(key)
    fal = FalSettings(key=Secret("a:b"), probe_seconds=0, idle_seconds=5, api_url=url, usage_key=secret, **hosts)
    return FalPlatform(fal, answer_seconds=seconds)


def line(endpoint: str = NEXT, **more: Any) -> dict[str, Any]:
    return {"endpoint_id": endpoint, "unit": "compute second", "quantity": 2, "unit_price": 0.01, **more}


class Fal:
    """Has use on some days, a day on each page, and counts one call more than the endpoint's name has letters."""

    def __init__(self, days: dict[str, list[dict[str, Any]]]) -> None:
        self._days = days
        self.asked: list[tuple[str, list[tuple[str, str]]]] = []
        self.keys: set[str] = set()

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/v1/models/{what}", self.show)])

    async def show(self, request: Request) -> Response:
        what, query = request.path_params["what"], request.query_params
        self.asked.append((what, query.multi_items()))
        self.keys.add(request.headers["authorization"])
        at = int(query.get("cursor", "0"))
        day, lines = list(self._days.items())[at]
        if what == "analytics":
            wanted = query.getlist("endpoint_id")
            assert 0 < len(wanted) <= 50
            names = {one["endpoint_id"] for one in lines} & set(wanted)
            lines = [{"endpoint_id": name, "success_count": len(name)} for name in sorted(names)]
        cursor = str(at + 1) if at + 1 < len(self._days) else None
        series = [{"bucket": day, "results": lines}]
        return JSONResponse({"time_series": series, "next_cursor": cursor, "has_more": cursor is not None})


async def test_all_pages_are_read_and_added_up() -> None:
    fal = Fal(
        {
            "2026-01-30T00:00:00Z": [line(), line(unit="image", quantity=3, unit_price=0.1)],
            # The same moment as midnight UTC; and what it costs is not what the price says.
            "2026-01-31T01:00:00+01:00": [line(cost=0.0000004), line(cost=0.0000003), line(OTHER)],
        }
    )
    with running(fal.app()) as url:
        found = await platform_at(url).read_usage(FIRST, LAST, [NEXT])
    assert found.keys() == {
        DayOfEndpoint("2026-01-30", NEXT),
        DayOfEndpoint("2026-01-31", NEXT),
        DayOfEndpoint("2026-01-31", OTHER),
    }
    first, second = found["2026-01-30", NEXT], found["2026-01-31", NEXT]  # type: ignore[index]
    assert first.usd == Decimal("0.32") and first.quantities == {"compute second": 2, "image": 3}
    assert second.usd == Decimal("0.0000007") and (first.calls, second.calls) == (len(NEXT), len(NEXT))
    assert fal.keys == {f"Key {KEY}"}


async def test_only_the_days_that_are_asked_about_count() -> None:
    days = ("2026-01-29T23:59:59Z", "2026-01-30T00:00:00Z", "2026-02-02T23:00:00Z", "2026-02-03T00:00:00Z")
    fal = Fal({day: [line()] for day in days})
    with running(fal.app()) as url:
        found = await platform_at(url).read_usage(FIRST, LAST, [])
    assert {key.day for key in found} == {"2026-01-30", "2026-02-02"}
    period = {("start", "2026-01-30T00:00:00Z"), ("end", "2026-02-03T00:00:00Z"), ("timezone", "UTC")}
    assert all(period <= set(query) for _, query in fal.asked)


async def test_many_endpoints_are_counted_some_at_a_time() -> None:
    names = [f"fal-ai/model-{number}" for number in range(120)]
    fal = Fal({"2026-01-30T00:00:00Z": [line(name) for name in names]})
    with running(fal.app()) as url:
        found = await platform_at(url).read_usage(FIRST, LAST, names)
    assert all(found[DayOfEndpoint("2026-01-30", name)].calls == len(name) for name in names)
    assert [what for what, _ in fal.asked] == ["usage", "analytics", "analytics", "analytics"]


@contextlib.contextmanager
def answering(answer: Callable[[Request], Response]) -> Iterator[str]:
    async def respond(request: Request) -> Response:
        return answer(request)

    with running(Starlette(routes=[Route("/{path:path}", respond)])) as url:
        yield url


def page(*lines: dict[str, Any], bucket: Any = "2026-01-30T00:00:00Z", cursor: Any = None) -> Response:
    return JSONResponse({"time_series": [{"bucket": bucket, "results": lines}], "next_cursor": cursor})


async def large() -> AsyncIterator[bytes]:
    """Without a length in its head."""
    for _ in range(MOST_BYTES // 65536 + 2):
        yield b" " * 65536


WRONG: dict[str, tuple[Callable[[Request], Response], type[ProxyError], str]] = {
    "no key": (lambda _: JSONResponse({"error": {"message": KEY}}, 401), UpstreamRejectedKey, "admin key"),
    "no admin": (lambda _: JSONResponse({"error": {"message": KEY}}, 403), UpstreamRejectedKey, "admin key"),
    "too often": (lambda _: Response(KEY, 429, {"retry-after": "7"}), UpstreamBusy, "no more questions"),
    "failure": (lambda _: Response(KEY, 502), UpstreamUnavailable, "status 502"),
    "not there": (lambda _: Response(KEY, 404), BadUpstream, "status 404"),
    "redirect": (lambda _: RedirectResponse("/elsewhere"), BadUpstream, "status 307"),
    "no JSON": (lambda _: Response(f"<p>{KEY}"), BadUpstream, "no JSON"),
    "deep": (lambda _: Response("[" * 100_000), BadUpstream, "form"),
    "a list": (lambda _: JSONResponse([]), BadUpstream, "form"),
    "no series": (lambda _: JSONResponse({"next_cursor": None}), BadUpstream, "time_series"),
    "no day": (lambda _: page(bucket="yesterday"), BadUpstream, "bucket"),
    "no offset": (lambda _: page(bucket="2026-01-30T00:00:00"), BadUpstream, "bucket"),
    "before all days": (lambda _: page(line(), bucket="0001-01-01T00:00:00+10:00"), BadUpstream, "calendar"),
    "negative": (lambda _: page(line(quantity=-1)), BadUpstream, "quantity"),
    "huge": (lambda _: page(line(cost=1e300)), BadUpstream, "cost"),
    "no number": (lambda _: page(line(unit_price="cheap")), BadUpstream, "unit_price"),
    "long name": (lambda _: page(line("a" * 201)), BadUpstream, "endpoint_id"),
    "euros": (lambda _: page(line(currency="EUR")), BadUpstream, "EUR"),
    "long cursor": (lambda _: page(cursor="x" * 3000), BadUpstream, "next_cursor"),
    "no last page": (lambda _: page(cursor="again"), BadUpstream, f"{MOST_PAGES} pages"),
    "large": (lambda _: StreamingResponse(large()), BadUpstream, f"{MOST_BYTES} bytes"),
    "large in pages": (
        lambda _: Response(b'{"time_series": [], "next_cursor": "x"}'.ljust(MOST_BYTES // 3)),
        BadUpstream,
        f"{MOST_BYTES} bytes",
    ),
}


@pytest.mark.parametrize("name", WRONG)
async def test_a_wrong_answer_is_named_and_shows_no_key(name: str) -> None:
    answer, kind, words = WRONG[name]
    with answering(answer) as url, pytest.raises(ProxyError) as caught:
        await platform_at(url).read_usage(FIRST, LAST, [NEXT])
    assert type(caught.value) is kind and words in caught.value.message
    assert KEY not in caught.value.message and "admin-secret" not in repr(caught.value.__cause__)
    if kind is UpstreamBusy:
        assert caught.value.retry_after == 7


async def test_a_fal_that_refuses_connections_or_never_finishes_its_answer() -> None:
    with pytest.raises(UpstreamUnavailable, match="ConnectError"):
        await platform_at(f"http://127.0.0.1:{free_port()}").read_usage(FIRST, LAST, [])

    async def trickle() -> AsyncIterator[bytes]:
        # Never silent for long: the limit is on the whole.
        for _ in range(200):
            yield b" "
            await anyio.sleep(0.02)

    with answering(lambda _: StreamingResponse(trickle())) as url, pytest.raises(UpstreamTimeout):
        await platform_at(url, seconds=0.3).read_usage(FIRST, LAST, [])


async def test_one_question_is_asked_at_a_time() -> None:
    open_now, most = 0, 0

    async def show(request: Request) -> Response:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        await anyio.sleep(0.05)
        open_now -= 1
        return page()

    with running(Starlette(routes=[Route("/{path:path}", show)])) as url:
        platform = platform_at(url)
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(platform.read_usage, FIRST, LAST, [NEXT])
    assert most == 1


async def test_a_key_is_needed_and_can_be_replaced() -> None:
    fal = Fal({"2026-01-30T00:00:00Z": [line()]})
    with running(fal.app()) as url:
        platform = platform_at(url, None)
        with pytest.raises(BadRequest, match="FAL_USAGE_KEY is not set"):
            await platform.read_usage(FIRST, LAST, [])
        assert not fal.asked
        platform.replace_key(Secret("new:key"))
        assert await platform.read_usage(FIRST, LAST, [])
    assert fal.keys == {"Key new:key"}
