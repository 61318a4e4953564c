"""Short ways to write the records that the tests put in."""

from __future__ import annotations

import itertools
from typing import Any

from proxy.stores.directory import TenantKey
from proxy.stores.grants import Grant
from proxy.stores.idempotency import Claim
from proxy.stores.ledger import Bucket, Charge, Job
from proxy.stores.uploads import Upload

PLANS = {"free": {"endpoints": ["fal-ai/llava-next"], "max_tokens": None}}
ACME = {"id": "acme", "plan": "free", "allowed_origins": ["https://app.acme.example"]}
GLOBEX = {"id": "globex", "plan": "free", "allowed_origins": []}
KEY = TenantKey(id="k1", tenant="acme", name="backend", secret_hash="0" * 64, created_at=10.5)
UPLOAD = Upload(
    id="hash",
    tenant="acme",
    subject="alice",
    content_type="image/png",
    file_url="https://v3.fal.media/a",
    upstream_url="https://v3.fal.media/a?s=1",
    max_bytes=1000,
    expires_at=900.0,
    plan="free",
)
CLAIM = Claim("acme", "alice", key_hash="k" * 64, body_hash="b" * 64, job_id="j-1", created_at=100.0)
REQUESTS = Bucket("acme", "", "requests", "day", 86_400)
ALICES = Bucket("acme", "alice", "tokens", "month", 0)
_numbers = itertools.count()


def job(*charges: Charge, **more: Any) -> Job:
    """A call of alice's that takes these charges, with an id of its own."""
    facts: dict[str, Any] = {
        "id": f"{next(_numbers):032x}",
        "kind": "submit",
        "endpoint": "fal-ai/llava-next",
        "tenant": "acme",
        "subject": "alice",
        "submitted_at": 1000.0,
        "expires_at": 2200.0,
        "checked_at": 1000.0,
        "used": {charge.bucket.unit: charge.amount for charge in charges},
    }
    return Job(**{**facts, "charges": charges, **more})


def grant(amount: int, subject: str = "", unit: str = "requests", **more: Any) -> Grant:
    """A grant of acme's, or of one of its subjects, with an id of its own."""
    facts: dict[str, Any] = {"id": f"{next(_numbers):032x}", "tenant": "acme", "reason": "paid", "created_at": 500.0}
    return Grant(**{**facts, "subject": subject, "unit": unit, "amount": amount, **more})
