"""A database with many old calls, written by the database itself in a minute.

Indexes stay while it is filled. Triggers do not run: what they keep is added up in one statement at the end.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text

from proxy.stores.ledger import UNITS
from proxy.stores.sql.database import Database
from proxy.stores.sql.schema import USAGE_SUMS

DAY = 86_400
DAYS, USERS, OTHER_TENANTS, TAGS = 90, 20_000, 50, 200
#: The tenant of nine in ten calls.
TENANT = "bench"
#: The job whose page is measured.
JOB = 7
_ENDPOINTS = ("fal-ai/llava-next", "fal-ai/llavav15-13b", *(f"fal-ai/model-{number:02}" for number in range(10)))
#: What each database calls things. Ids are scattered, as random ones are.
_WORDS = {
    "sqlite": {
        "numbers": "WITH RECURSIVE numbers(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n < {last})",
        "id": "printf('%08x%024x', n * 2654435761 % 4294967296, n)",
        "session": "printf('s-%08x', n / 4 * 2654435761 % 4294967296)",
        "user": "printf('user-%05d', {number})",
        "hour": "CAST(submitted_at / 3600 AS INTEGER)",
        "amount": "coalesce(json_extract(used, '$.{unit}'), 0)",
        "document": "",
        "close": "",
        "tag": "value",
        "each_tag": "json_each(coalesce(tags, '[\"\"]')) AS each_tag",
    },
    "postgresql": {
        "numbers": "WITH numbers AS (SELECT n FROM generate_series(0::bigint, {last}) AS n)",
        "id": "lpad(to_hex(n * 2654435761 % 4294967296), 8, '0') || lpad(to_hex(n), 24, '0')",
        "session": "'s-' || lpad(to_hex(n / 4 * 2654435761 % 4294967296), 8, '0')",
        "user": "'user-' || lpad(({number})::text, 5, '0')",
        "hour": "floor(submitted_at / 3600)::integer",
        "amount": "coalesce((used ->> '{unit}')::bigint, 0)",
        "document": "(",
        "close": ")::json",
        "tag": "tag",
        "each_tag": "json_array_elements_text(coalesce(tags, '[\"\"]')) AS each_tag(tag)",
    },
}
_JOBS = """
INSERT INTO jobs (id, request_id, kind, endpoint, tenant, subject, state, charges, used, submitted_at, checked_at,
  expires_at, session, tags)
{numbers}
SELECT {id}, {id}, 'submit', {endpoint}, {tenant}, {user}, 'counted',
  '[["","requests","day",0,1000000,1000000000000]]',
  {document}'{{"requests":1000000,"tokens":' || (n % 256 * 1000000) || ',"usd":' || (n % 5000) || '}}'{close},
  {begin} + n * {step}, {begin} + n * {step}, {begin} + n * {step} + 3600, {session},
  CASE WHEN n % 3 = 0 THEN NULL ELSE {document}'["web","team:' || (n % {tags}) || '"]'{close} END
FROM numbers
"""
_USAGE = """
INSERT INTO usage_days (tenant, subject, day, endpoint, {sums})
{numbers}
SELECT {tenant}, {user}, {first} + n % {days}, {endpoint}, {ones}
FROM numbers
"""
_TOTALS = """
INSERT INTO usage_totals (tenant, day, endpoint, {sums})
SELECT tenant, day, endpoint, {added} FROM usage_days GROUP BY tenant, day, endpoint
"""
#: What triggers keep of the jobs.
_HOURS = """
INSERT INTO usage_hours (tenant, hour, endpoint, {sums})
SELECT tenant, {hour}, endpoint, {used} FROM jobs GROUP BY 1, 2, 3
"""
_TAGS = """
INSERT INTO usage_tags (tenant, tag, day, endpoint, {sums})
SELECT tenant, each_tag.{tag}, {hour} / 24, endpoint, {used} FROM jobs, {each_tag} GROUP BY 1, 2, 3, 4
"""


@dataclass(frozen=True)
class OldCalls:
    """How many jobs and rows of usage there are, of the days before today."""

    jobs: int
    rows: int

    def statements(self, dialect: str) -> list[str]:
        """The statements that write them."""
        words, facts = _WORDS[dialect], self._describe(dialect)
        number = f"n / {DAYS}"
        jobs = _JOBS.format(
            **facts,
            numbers=words["numbers"].format(last=self.jobs - 1),
            endpoint=_endpoint("n"),
            tenant=_tenant("n % 10 < 9", "n / 10"),
            user=words["user"].format(number=f"n * 7919 % {USERS}"),
        )
        usage = _USAGE.format(
            **facts,
            numbers=words["numbers"].format(last=self.rows - 1),
            endpoint=_endpoint(f"n + {number}"),
            # Users one after the other, as the key has them; past the first ones they are of other tenants.
            tenant=_tenant(f"{number} < {USERS}", number),
            user=words["user"].format(number=f"{number} % {USERS}"),
        )
        return [jobs, usage, *(statement.format(**facts) for statement in (_TOTALS, _HOURS, _TAGS))]

    def _describe(self, dialect: str) -> dict[str, Any]:
        words, first = _WORDS[dialect], int(time.time()) // DAY - DAYS
        return {
            **{name: words[name] for name in ("id", "session", "hour", "tag", "each_tag", "document", "close")},
            "tags": TAGS,
            "days": DAYS,
            "first": first,
            "begin": first * DAY,
            "step": DAYS * DAY / self.jobs,
            "sums": ", ".join(USAGE_SUMS),
            "added": ", ".join(f"sum({name})" for name in USAGE_SUMS),
            "ones": ", ".join("1" for _ in USAGE_SUMS),
            "used": ", ".join(["count(*)", *(f"sum({part})" for part in _parts(words["amount"]))]),
        }


def job_id(number: int) -> str:
    """The id of a job."""
    return f"{number * 2_654_435_761 % 2**32:08x}{number:024x}"


def user(number: int) -> str:
    """The name of a user of `TENANT`."""
    return f"user-{number:05}"


def _parts(amount: str) -> list[str]:
    """The whole units and the rest of each amount of a job."""
    amounts = [amount.format(unit=unit) for unit in UNITS]
    return [f"{one} {part} 1000000" for one in amounts for part in ("/", "%")]


def _tenant(is_first: str, number: str) -> str:
    return f"CASE WHEN {is_first} THEN '{TENANT}' ELSE 'tenant-' || ({number} % {OTHER_TENANTS}) END"


def _endpoint(number: str) -> str:
    cases = " ".join(f"WHEN {place} THEN '{name}'" for place, name in enumerate(_ENDPOINTS))
    return f"CASE ({number}) % {len(_ENDPOINTS)} {cases} END"


def fill_sqlite(path: str, calls: OldCalls) -> None:
    """Write the calls into a file that no process has open."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        # Nothing else reads the file, and it is thrown away if this fails.
        connection.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-800000")
        triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        connection.execute("BEGIN EXCLUSIVE")
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        for statement in calls.statements("sqlite"):
            connection.execute(statement)
        for _, statement in triggers:
            connection.execute(statement)
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode=WAL")


async def fill_postgresql(url: str, calls: OldCalls) -> None:
    """Write the calls into a database, as its superuser."""
    database = Database(url)
    try:
        async with database.migrating() as connection:
            await connection.execute(text("SET LOCAL session_replication_role = replica"))
            await connection.execute(text("SET LOCAL synchronous_commit = off"))
            for statement in calls.statements("postgresql"):
                await connection.exec_driver_sql(statement)
        async with database.migrating() as connection:
            await connection.execute(text("ANALYZE"))
    finally:
        await database.close()
