"""The cost of the limits: `python -m tests.bench.limits`. Needs wrk, taskset, PostgreSQL and Redis.

The way of a submit and of a run with everything on, with SQLite and with PostgreSQL and Redis on the loopback, beside
the same with quotas, rate limits and slots off; and calls with an app's own identity token beside calls with a session.
Everything else is as in `python -m tests.bench`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from tests.bench.contestants import EVERYTHING_ON, IDENTITY, LIMITS_OFF, fal_proxy
from tests.bench.processes import ROOT, machine, static_fal, versions
from tests.bench.rounds import LOAD_CORE, PROXY_CORE, RUN, STATUS, SUBMIT, measure
from tests.support.issuer import private_key, public_jwk, sign
from tests.support.postgres import running_postgres
from tests.support.redis import running_redis
from tests.support.servers import free_port


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.limits", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bench-limits.json")
    options = parser.parse_args()
    report = {"machine": machine(), "versions": versions("fal-proxy", "sqlalchemy", "asyncpg", "redis")}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port = free_port()
        stack.enter_context(static_fal(port, LOAD_CORE, folder / "static-upstream.log"))
        upstream = f"http://127.0.0.1:{port}"
        postgres = stack.enter_context(running_postgres(durable=True))
        redis = stack.enter_context(running_redis())
        both = [
            {"PROXY_DATABASE_URL": postgres.url(postgres.create_database()), "PROXY_REDIS_URL": redis.url}
            for _ in range(2)
        ]
        # Each with limits stands behind the same without.
        contestants = [
            stack.enter_context(fal_proxy(upstream, PROXY_CORE, folder, name=name, limits=limits, stores=stores))
            for name, limits, stores in (
                ("SQLite, limits off", LIMITS_OFF, {}),
                ("SQLite, everything on", EVERYTHING_ON, {}),
                ("PostgreSQL and Redis, limits off", LIMITS_OFF, both[0]),
                ("PostgreSQL and Redis, everything on", EVERYTHING_ON, both[1]),
            )
        ]
        results = measure(contestants, options.rounds, options.seconds, (SUBMIT, RUN))
        key = private_key("bench")
        keys = {"keys": [public_jwk(key, kid="bench")]}
        session = stack.enter_context(fal_proxy(upstream, PROXY_CORE, folder, name="session", keys=keys))
        now = int(time.time())
        claims = {
            "iss": IDENTITY["issuer"],
            "aud": IDENTITY["audience"],
            "sub": "bench",
            "iat": now,
            "exp": now + 86_400,
        }
        token = replace(session, name="identity token", token=sign({"alg": "RS256", "kid": "bench"}, claims, key))
        credentials = measure((session, token), options.rounds, options.seconds, (SUBMIT, RUN, STATUS))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report | {"results": results, "credentials": credentials}, indent=2) + "\n")
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
