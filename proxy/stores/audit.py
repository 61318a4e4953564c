"""The audit log: who changed what, when and from where, as a chain of hashes.

Each entry's hash is over the hash before it and the entry's own document, so that an entry that is changed, missing or
in another place shows. The document never names an end user: it holds a reference, whose name is stored elsewhere and
can be erased without breaking the chain.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from proxy.clock import to_iso

#: What the first entry follows.
GENESIS = "0" * 64
#: What is longer than this, as JSON, is stored as its length and SHA-256. A plan or a tenant is hardly ever longer.
MOST_VALUE_BYTES = 16 * 1024


@dataclass(frozen=True)
class Author:
    """Who makes a change, and from where.

    Attributes:
        name: `token:NAME`, `PROXY_ADMIN_TOKEN`, `console:` and one of these, `key:ID` of a tenant, `command:USER` or
            `server:start`.
        at: when, in seconds since 1970 UTC.
        address: of the caller, or the name of the machine.
    """

    name: str
    at: float
    address: str
    request_id: str = ""

    @classmethod
    def of_process(cls, name: str, now: float) -> Author:
        """Give the author of a change that this process makes without a request."""
        return cls(name, now, socket.gethostname())


@dataclass(frozen=True)
class Change:
    """One change, without secrets.

    Attributes:
        action: what happens to what, such as `key.create`.
        target: the id of what changes. Never the name of an end user.
        subject: the end user whom it concerns; this name, and nothing else, is erased when the user is forgotten.
        before, after: the values that change; None for what is not there.
    """

    action: str
    tenant: str = ""
    target: str = ""
    subject: str = ""
    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] | None = None


def compose_document(number: int, by: Author, change: Change, subject_ref: str) -> str:
    """Compose the document of an entry: canonical JSON, with sorted keys and no spaces."""
    before, after = _differences(change.before, change.after)
    document = {
        "number": number,
        "at": to_iso(by.at, "microseconds"),
        "by": by.name,
        "address": by.address,
        "request_id": by.request_id,
        "action": change.action,
        "tenant": change.tenant,
        "target": change.target,
        "subject_ref": subject_ref,
        "before": _shorten_value(before),
        "after": _shorten_value(after),
    }
    return orjson.dumps(document, option=orjson.OPT_SORT_KEYS).decode()


def compute_hash(previous: str, document: str) -> str:
    """Compute the hash of an entry from the hash before it."""
    return hashlib.sha256(f"{previous}\n{document}".encode()).hexdigest()


def _differences(
    before: Mapping[str, Any] | None, after: Mapping[str, Any] | None
) -> tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]:
    """Leave out what is the same before and after."""
    if before is None or after is None:
        return before, after
    same = {key for key, value in before.items() if key in after and after[key] == value}
    return (
        {key: value for key, value in before.items() if key not in same},
        {key: value for key, value in after.items() if key not in same},
    )


def _shorten_value(value: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    text = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    if len(text) <= MOST_VALUE_BYTES:
        return value
    return {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
