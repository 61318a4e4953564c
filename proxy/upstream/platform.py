"""fal's platform API: what the whole account used, as fal bills it. Read with a key of its own, an admin key.

The calls here cost nothing, and use neither the breakers nor the key of the calls to models.

Source: fal's pages "Usage" and "Analytics" of its Platform APIs (https://fal.ai/docs/platform-apis/v1/models/usage and
/analytics). Both answer `{time_series: [{bucket, results}], next_cursor, has_more}`; a result of the first has
`endpoint_id`, `unit`, `quantity`, `unit_price` and, newer, `cost` and `currency`; one of the second has `endpoint_id`
and the counts that were asked for. docs/reconciliation.md lists what is assumed beyond that.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, timedelta
from decimal import Decimal
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Annotated, Generic, NamedTuple, TypeVar
from urllib.parse import urlencode

from pydantic import AwareDatetime, BaseModel, Field, ValidationError

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
from proxy.upstream.refusals import retry_after_of

if TYPE_CHECKING:
    import httpx

#: For all pages of one question together. The command line waits a little longer.
ANSWER_SECONDS = 25.0
#: Of all pages of one question together.
MOST_BYTES = 8 * 1024 * 1024
MOST_PAGES = 100
#: fal counts the requests of so many endpoints at once.
_ENDPOINTS_AT_ONCE = 50
_Query = list[tuple[str, str]]
_Amount = Annotated[Decimal, Field(ge=0, le=10**15)]
_Name = Annotated[str, Field(min_length=1, max_length=200)]


class _Usage(BaseModel):
    endpoint_id: _Name
    unit: _Name
    quantity: _Amount
    unit_price: _Amount
    cost: _Amount | None = None
    currency: _Name = "USD"


class _Count(BaseModel):
    endpoint_id: _Name
    success_count: Annotated[int, Field(ge=0, le=10**15)] = 0


Result = TypeVar("Result", _Usage, _Count)


class _Bucket(BaseModel, Generic[Result]):
    bucket: AwareDatetime
    results: list[Result]


class _Page(BaseModel, Generic[Result]):
    time_series: list[_Bucket[Result]]
    next_cursor: Annotated[str, Field(max_length=2000)] | None = None


class DayOfEndpoint(NamedTuple):
    """A day, UTC, as YYYY-MM-DD, and an endpoint."""

    day: str
    endpoint: str


@dataclass
class Billed:
    """What fal counts of one endpoint on one day.

    Attributes:
        calls: those that succeeded.
        quantities: what was used, by fal's name of the unit.
    """

    calls: int = 0
    usd: Decimal = Decimal(0)
    quantities: defaultdict[str, Decimal] = field(default_factory=lambda: defaultdict(Decimal))


class FalPlatform:
    """Reads fal's own record of the account.

    Args:
        ssl_context: what verifies fal's server; httpx's by default.
        answer_seconds: how long a question may take.
    """

    def __init__(
        self, fal: FalSettings, ssl_context: ssl.SSLContext | None = None, answer_seconds: float = ANSWER_SECONDS
    ) -> None:
        self._answer_seconds = answer_seconds
        self._url = fal.api_url
        self._key = fal.usage_key
        self._ssl_context = ssl_context
        # Questions of many days are slow there: one after the other.
        self._turn = asyncio.Semaphore(1)

    @property
    def has_key(self) -> bool:
        """Whether fal can be asked."""
        return self._key is not None

    def replace_key(self, key: Secret | None) -> None:
        """Ask with another key from now on."""
        self._key = key

    async def read_usage(self, first: date, last: date, endpoints: Collection[str]) -> dict[DayOfEndpoint, Billed]:
        """Read what fal bills, both ends included.

        Args:
            endpoints: those of which calls are counted, beside those that fal bills.

        Raises:
            BadRequest: no key is set.
            UpstreamRejectedKey, UpstreamBusy, UpstreamUnavailable, UpstreamTimeout: fal refuses, or does not answer.
            BadUpstream: the answer is too large, or not in the form that fal documents.
        """
        if self._key is None:
            raise BadRequest("FAL_USAGE_KEY is not set; to compare with fal, set it to an admin key of fal's.")
        import httpx

        try:
            async with asyncio.timeout(self._answer_seconds), self._turn, self._open_client(self._key) as client:
                return await _Reading(client, first, last).read(endpoints)
        except (TimeoutError, httpx.TimeoutException):
            raise UpstreamTimeout("fal's platform API did not answer in time; ask about fewer days.") from None
        except httpx.HTTPError as problem:
            # `from None`: the cause carries the request, and with it the key.
            message = f"fal's platform API cannot be reached ({type(problem).__name__})."
            raise UpstreamUnavailable(message, scope="upstream") from None

    def _open_client(self, key: Secret) -> httpx.AsyncClient:
        # Imported here: reading the authorities of the system takes a while.
        import httpx

        if self._ssl_context is None:
            self._ssl_context = httpx.create_ssl_context()
        headers = {"authorization": f"Key {key.reveal()}", "accept": "application/json", "accept-encoding": "identity"}
        return httpx.AsyncClient(
            base_url=self._url,
            headers=headers,
            # What an answer sets is not brought back.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            verify=self._ssl_context,
            trust_env=False,
            follow_redirects=False,
            timeout=self._answer_seconds,
        )


class _Reading:
    """One question about some days, in as many requests as it takes."""

    def __init__(self, client: httpx.AsyncClient, first: date, last: date) -> None:
        self._client = client
        self._first, self._last = first, last
        self._bytes_left = MOST_BYTES
        self._pages_left = MOST_PAGES

    async def read(self, endpoints: Collection[str]) -> dict[DayOfEndpoint, Billed]:
        found: defaultdict[DayOfEndpoint, Billed] = defaultdict(Billed)
        async for key, line in self._read_days("/v1/models/usage", _Page[_Usage], [("expand", "time_series")]):
            if line.currency.upper() != "USD":
                raise BadUpstream(f"fal bills in {line.currency[:10]!r}, and the ledger has US dollars only.")
            found[key].usd += line.quantity * line.unit_price if line.cost is None else line.cost
            found[key].quantities[line.unit] += line.quantity
        names = sorted({*endpoints, *(key.endpoint for key in found)})
        for start in range(0, len(names), _ENDPOINTS_AT_ONCE):
            some = [("endpoint_id", name) for name in names[start : start + _ENDPOINTS_AT_ONCE]]
            query = [("expand", "time_series"), ("expand", "success_count"), *some]
            async for key, count in self._read_days("/v1/models/analytics", _Page[_Count], query):
                found[key].calls += count.success_count
        return dict(found)

    async def _read_days(
        self, path: str, form: type[_Page[Result]], query: _Query
    ) -> AsyncIterator[tuple[DayOfEndpoint, Result]]:
        """Read all pages; what lies outside of the days that were asked about is left out."""
        # The last day of the calendar has none behind it.
        end = f"{self._last}T23:59:59Z" if self._last == date.max else f"{self._last + timedelta(days=1)}T00:00:00Z"
        period: _Query = [("start", f"{self._first}T00:00:00Z"), ("end", end)]
        fixed: _Query = [*period, ("timezone", "UTC"), ("timeframe", "day"), ("bound_to_timeframe", "false"), *query]
        cursor: _Query = []
        while True:
            page = await self._read_page(path, form, [*fixed, *cursor])
            for one in _list_lines(page):
                if str(self._first) <= one[0].day <= str(self._last):
                    yield one
            if page.next_cursor is None:
                return
            cursor = [("cursor", page.next_cursor)]

    async def _read_page(self, path: str, form: type[_Page[Result]], query: _Query) -> _Page[Result]:
        self._pages_left -= 1
        if self._pages_left < 0:
            raise BadUpstream(f"fal's answer has more than {MOST_PAGES} pages; ask about fewer days.")
        async with self._client.stream("GET", f"{path}?{urlencode(query)}") as answer:
            if answer.status_code != 200:
                raise _refusal_of(answer)
            body = b""
            async for chunk in answer.aiter_raw():
                body += chunk
                if len(body) > self._bytes_left:
                    raise BadUpstream(f"fal's answer has more than {MOST_BYTES} bytes; ask about fewer days.")
        self._bytes_left -= len(body)
        try:
            return form.model_validate_json(body)
        except ValidationError as problem:
            where = ".".join(str(part) for part in problem.errors()[0]["loc"])[:100]
            raise BadUpstream(f"fal's answer is not in the form that fal documents ({where or 'no JSON'}).") from None


def _list_lines(page: _Page[Result]) -> Iterator[tuple[DayOfEndpoint, Result]]:
    for bucket in page.time_series:
        try:
            day = bucket.bucket.astimezone(UTC).date().isoformat()
        except OverflowError:
            raise BadUpstream("fal's answer has a day that the calendar has not.") from None
        for line in bucket.results:
            yield DayOfEndpoint(day, line.endpoint_id), line


def _refusal_of(answer: httpx.Response) -> ProxyError:
    """Return the error for a status. fal's own words are not passed on: they may quote the key."""
    status = answer.status_code
    if status in (401, 403):
        return UpstreamRejectedKey(f"fal refuses FAL_USAGE_KEY (status {status}); it must be an admin key of fal's.")
    if status == 429:
        message = "fal's platform API takes no more questions now."
        return UpstreamBusy(message, retry_after=retry_after_of(answer.headers) or 60, scope="upstream")
    if status >= 500:
        return UpstreamUnavailable(f"fal's platform API fails (status {status}).", scope="upstream")
    return BadUpstream(f"fal's platform API answered with status {status}.", scope="upstream")
