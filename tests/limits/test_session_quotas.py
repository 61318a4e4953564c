"""What is left of a session's quotas while the ledger does not answer: its answers go without, and the log says so."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from proxy.limits.session_quotas import SessionQuotas
from proxy.stores.sql import SqlStores
from proxy.telemetry.log_limit import SECONDS, LogLimit
from proxy.tenants.caller import Session, SessionQuota

pytestmark = pytest.mark.anyio


async def test_a_ledger_that_does_not_answer_is_logged_once_a_minute_for_each_tenant(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "proxy.limits.session_quotas")
    now = 0.0
    limit = LogLimit(timer=lambda: now)
    stores = SqlStores(f"sqlite:///{tmp_path}/missing/proxy.db")

    async def read(tenant: str) -> None:
        session = Session("one", tenant, "alice", 0.0, 600.0, quotas=(SessionQuota("requests", 1),))
        for _ in range(20):
            assert await SessionQuotas(stores.ledger, session, limit).raw_headers() == []

    try:
        for tenant in ("acme", "globex"):
            await read(tenant)
        now = SECONDS + 1.0
        await read("acme")
    finally:
        await stores.close()
    lines = [record for record in caplog.records if record.message == "quotas of a session not read"]
    logged = [record.__dict__["log_fields"] for record in lines]
    assert [fields["tenant"] for fields in logged] == ["acme", "globex", "acme"]
    # On a busy machine, to find no file may take longer than an answer waits.
    assert {fields["problem"] for fields in logged} <= {"FileUnusable", "TimeoutError"}
