"""JSON that lies, on every route that takes it: the answer is a success or one refusal, and a refusal takes nothing.

python -m tests.fuzz.json --minutes 10
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import orjson
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from proxy.sandbox.app import create_sandbox
from tests.security.bodies import TENANTS, Taking, forms, inputs
from tests.security.shape import assert_refusal
from tests.security.wire import Answer, Wire
from tests.support.limited import account, limited_proxy, per, plan
from tests.support.sandbox import SandboxControl
from tests.support.servers import running
from tests.support.stack import Stack

#: Every unit, so that a refusal shows whatever it takes; no limit is ever reached.
PLANS = {
    "acme": plan(quotas=[per("tenant", unit, 10**12) for unit in ("requests", "tokens", "compute_seconds")]),
    "few": plan(),
}
#: Each request comes from another address, so that the flood guard lets all of them in.
TRUSTING = {"proxy_headers": True, "forwarded_allow_ips": ["127.0.0.0/8"]}
KNOWN_FIELDS = ("prompt", "image_url", "images", "max_tokens", "temperature", "endpoint", "input", "subject", "tenant")
_STRINGS = st.text(max_size=20) | st.sampled_from(
    ["", "\0", '"\\', "data:,", "http://[", "a" * 5000, "\u2028", "[[pace x=1]]"]
)
_NUMBERS = st.integers() | st.floats() | st.sampled_from([0, -1, 2**63, 2**64, 10**30, 1e308, -0.0, 64.0])
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | _NUMBERS | _STRINGS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_STRINGS, inner, max_size=4),
    max_leaves=8,
)
_SHAPES = st.sampled_from([(b"[", b"]"), (b'{"a":', b"}")])
_DEPTHS = st.sampled_from([1, 63, 64, 65, 254, 255, 1023, 5000])
_JUNK = st.sampled_from([b"", b"{", b"]", b'"', b"\\", b"\0", b"\xff", b"1e999", b"NaN", b",", b"\xef\xbb\xbf"])


@dataclass
class Bench:
    """A proxy, and every request with JSON that it takes."""

    stack: Stack
    wire: Wire
    folder: Path
    takings: list[Taking]
    addresses: Iterator[int] = field(default_factory=count)

    def booked(self) -> list[float]:
        """What has ever been taken from the tenant's quotas, reserved or used."""
        found = [account(self.folder, "acme", unit) for unit in ("requests", "tokens", "compute_seconds")]
        return [value for one in found for value in (one.used, one.reserved)]

    def send(self, taking: Taking, body: bytes, key: str | None) -> Answer:
        address = next(self.addresses)
        more = {"x_forwarded_for": f"10.{address >> 16 & 255}.{address >> 8 & 255}.{address & 255}"}
        return taking.send(self.wire, body, **more, **({"idempotency_key": key} if key else {}))


@st.composite
def bodies(draw: st.DrawFn, lawful: bytes) -> bytes:
    """A lawful body with some of it exchanged, as values or as bytes; or nothing of the kind."""
    match draw(st.sampled_from(["fields", "fields", "bytes", "value", "depth", "binary"])):
        case "fields":
            return _with_other_fields(draw, json.loads(lawful))
        case "bytes":
            return _with_other_bytes(draw, lawful)
        case "value":
            return _encode(draw(VALUES))
        case "depth":
            opens, closes = draw(_SHAPES)
            levels = draw(_DEPTHS)
            return (
                lawful[:-1] + b',"more":' + opens * levels + b"1" + closes * draw(st.sampled_from([levels, 0])) + b"}"
            )
        case _:
            return draw(st.binary(max_size=200))


def _with_other_fields(draw: st.DrawFn, document: dict[str, Any]) -> bytes:
    inside = document["input"] if "input" in document and draw(st.booleans()) else document
    for name in draw(st.lists(st.sampled_from([*inside, *KNOWN_FIELDS]) | _STRINGS, min_size=1, max_size=3)):
        inside[name] = draw(VALUES)
    return _encode(document)


def _with_other_bytes(draw: st.DrawFn, lawful: bytes) -> bytes:
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(lawful)))
        lawful = lawful[:at] + draw(_JUNK) + lawful[at + draw(st.integers(0, 2)) :]
    return lawful


def _encode(document: Any) -> bytes:
    """JSON as Python writes it: with NaN, half surrogates and numbers of any length."""
    return json.dumps(document).encode()


def check(bench: Bench, taking: Taking, body: bytes, key: str | None) -> None:
    """Send one body.

    Raises:
        AssertionError: the answer is no success and no refusal, or a refusal took something.
    """
    before = bench.booked()
    answer = bench.send(taking, body, key)
    if answer.status < 400:
        return
    assert answer.status not in (500, 502, 503, 504), (taking.name, body, answer)
    code = answer.all("x-fal-error-type")
    # What fal itself refuses is passed on as it is.
    if "x-fal-request-id" not in dict(answer.headers):
        assert_refusal(answer, answer.status, code[0])
        assert bench.booked() == before, (taking.name, body, answer)
    orjson.loads(answer.body)


@contextlib.contextmanager
def bench() -> Iterator[Bench]:
    """A proxy in front of a sandbox that answers at once."""
    with contextlib.ExitStack() as parts:
        folder = Path(parts.enter_context(tempfile.TemporaryDirectory()))
        sandbox = SandboxControl(parts.enter_context(running(create_sandbox())))
        parts.callback(sandbox.close)
        sandbox.pace(run_seconds=0, queue_positions=0, seconds_per_position=0, words_per_second=10**6)
        stack = parts.enter_context(limited_proxy(sandbox, folder, PLANS, tenants=TENANTS, server=TRUSTING))
        wire = parts.enter_context(Wire(stack.url))
        yield Bench(stack, wire, folder, [*inputs(stack), *forms(stack, wire)])


def run(on: Bench, seed_: int, examples: int) -> None:
    """Check so many bodies."""

    @seed(seed_)
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.data(), st.sampled_from(range(len(on.takings))), st.booleans())
    def one(data: st.DataObject, which: int, is_keyed: bool) -> None:
        taking = on.takings[which]
        key = f"fuzz-{next(on.addresses)}" if is_keyed else None
        check(on, taking, data.draw(bodies(taking.body)), key)

    one()


def main() -> None:
    """Run for some minutes from a fresh seed, which a failure is repeated with."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=time.time_ns())
    given_ = parser.parse_args()
    print(f"JSON, seed {given_.seed}")
    ends_at, rounds = time.monotonic() + 60 * given_.minutes, 0
    with bench() as on:
        while time.monotonic() < ends_at:
            run(on, given_.seed + rounds, 200)
            on.stack.sandbox.forget()
            rounds += 1
    print(f"{200 * rounds} inputs, no fault")


if __name__ == "__main__":
    main()
