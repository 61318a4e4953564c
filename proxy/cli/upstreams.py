"""`fal-proxy upstreams`: fal's keys, as a running proxy uses them."""

from __future__ import annotations

from proxy.cli.deployment import Address, ask_deployment
from proxy.cli.output import AsJson, print_rows


def upstreams(url: Address = None, as_json: AsJson = False) -> None:
    """List the keys of fal by name: state, calls in flight and waiting, last refusal. Needs PROXY_ADMIN_TOKEN."""
    rows = ask_deployment("GET", "/v1/admin/upstreams", url, ("upstreams",))["upstreams"]
    if not as_json:
        for row in rows:
            last = row["last_refusal"]
            row["closed"] = ", ".join(row["closed"]) or "-"
            row["last_refusal"] = f"{last['reason']} at {last['at']}" if last else "-"
    print_rows(rows, as_json, ("name", "state", "closed", "in_flight", "waiting", "last_refusal"))
