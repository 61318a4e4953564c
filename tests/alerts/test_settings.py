"""What a plan may name as thresholds, and what a list of alerts may be asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from proxy.tenants.plans import Plan, Tenant
from tests.support.limited import assert_refused_with, limited_proxy, operating, plan
from tests.support.sandbox import SandboxControl

EVERYTHING = {"endpoints": ["fal-ai/llava-next"]}


@pytest.mark.parametrize("alerts", [[0], [101], [50, 50], list(range(1, 12)), [50.5], ["half"], 50])
def test_a_value_that_is_no_list_of_thresholds_is_refused(alerts: Any) -> None:
    with pytest.raises(ValidationError, match="alerts"):
        Plan.model_validate({**EVERYTHING, "alerts": alerts})


def test_thresholds_are_sorted_and_left_out_if_there_are_none() -> None:
    assert Plan.model_validate({**EVERYTHING, "alerts": [100, 50]}).alerts == (50, 100)
    # A version that does not know them could read no plan.
    assert "alerts" not in Plan.model_validate(EVERYTHING).model_dump(mode="json")


HOOK = {"url": "https://acme.example/hooks", "secret_env": "ACME_HOOK_SECRET"}


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"url": "acme.example"}, "must be a URL such as https://acme.example/hooks"),
        ({"url": "file:///etc/passwd"}, "must be a URL such as"),
        ({"url": "https://user:password@acme.example"}, "must have no user, password or fragment"),
        ({"url": "https://acme.example/" + "a" * 2000}, "at most 2000 characters"),
        ({"secret_env": None}, "name where the secret is"),
        ({"secret_file": "/run/secrets/hook"}, "name where the secret is"),
        ({"secret_env": "PROXY_ADMIN_SECRET"}, "one of the proxy's own variables"),
        ({"secret_env": "HOME"}, "should match pattern"),
        ({"secret": "whsec_"}, "not permitted"),
    ],
)
def test_a_value_that_is_no_receiver_of_alerts_is_refused(changed: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        Tenant.model_validate({"id": "acme", "plan": "free", "alerts_webhook": {**HOOK, **changed}})


def test_a_tenant_without_a_receiver_is_written_as_older_versions_read_it() -> None:
    tenant = Tenant.model_validate({"id": "acme", "plan": "free", "alerts_webhook": HOOK})
    assert tenant.alerts_webhook and tenant.alerts_webhook.url == HOOK["url"]
    assert "alerts_webhook" not in Tenant(id="acme", plan="free").model_dump(mode="json")


def test_a_malformed_query_of_alerts_is_refused(sandbox: SandboxControl, tmp_path: Path) -> None:
    with limited_proxy(sandbox, tmp_path, {"acme": plan()}) as stack:
        with operating(stack) as operator:
            assert operator.get("/v1/admin/alerts").json() == {"alerts": [], "next_cursor": None}
            for query in (
                {"tenant": "a b"},
                {"tenant": ""},
                {"delivery": "lost"},
                {"limit": "0"},
                {"limit": "501"},
                {"cursor": "x"},
                {"a": "b"},
            ):
                assert_refused_with(operator.get("/v1/admin/alerts", params=query), 400, "bad_request")
        with stack.client(stack.tenant_key()) as tenant:
            assert_refused_with(tenant.get("/v1/admin/alerts"), 401, "unauthenticated")
