"""The alerts and the dashboard in `deploy/`: they work, are explained, and use only metrics that a proxy has."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs.test_docs import page, rows, section
from tests.support.limited import Client, limited_proxy, plan
from tests.support.sandbox import SandboxControl
from tests.support.scrape import Scrape, scrape
from tests.support.waiting import wait_until

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES, RULES_TEST = DEPLOY / "prometheus" / "rules.yaml", DEPLOY / "prometheus" / "rules_test.yaml"
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
#: Where the file has the address of one's own copy of the operations page.
RUNBOOK = "https://docs.example.com/fal-proxy/operations/"
ALERTS: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
]
CASES: list[dict[str, Any]] = yaml.safe_load(RULES_TEST.read_text())["tests"]
#: What Prometheus adds to every sample of a target, and to a bucket.
TARGET_LABELS = {"job", "instance", "le"}
NAME = re.compile(r"\b(?:fal_proxy|process)_[a-z_]+\b")
SELECTOR = re.compile(r"\b((?:fal_proxy|process)_[a-z_]+)\{([^}]*)\}")
GROUPING = re.compile(r"\b(?:by|on) \(([^)]*)\)")


def expressions() -> dict[str, str]:
    """Every expression by the alert or the panel that it is in."""
    found = {alert["alert"]: alert["expr"] for alert in ALERTS}
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            found[f"{panel['title']} {target['refId']}"] = target["expr"]
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            found[variable["name"]] = variable["query"]["query"]
    return found


EXPRESSIONS = expressions()


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=110)


@pytest.fixture(scope="module")
def scraped(shared_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scrape]:
    """A proxy that has worked, so that every histogram has labels."""
    folder = tmp_path_factory.mktemp("monitoring")
    with limited_proxy(shared_sandbox, folder, {"plenty": plan()}) as stack:
        with Client(stack, stack.token(tenant="plenty")) as alice:
            assert alice.run().status_code == 200
            job = alice.submitted()
            wait_until(lambda: alice.status(job).json()["status"] == "COMPLETED")
        yield scrape(stack.url)


def documented_labels() -> dict[str, set[str]]:
    """The labels of each metric in the operations page."""
    table = rows(section(page("operations"), "Metrics"))
    # The values of a label, in parentheses, are no labels.
    return {name.strip("`"): set(re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", labels))) for name, labels, _ in table}


def metric_names(scraped: Scrape) -> set[str]:
    """The names of metrics as the operations page writes them."""
    return {family.name + ("_total" if family.type == "counter" else "") for family in scraped.families}


def test_the_operations_page_lists_every_metric_and_no_other(scraped: Scrape) -> None:
    assert set(documented_labels()) == metric_names(scraped)


def test_the_operations_page_lists_every_label_and_no_other(scraped: Scrape) -> None:
    shown = {name: scraped.labels(name) | scraped.labels(f"{name}_bucket") - {"le"} for name in documented_labels()}
    # Rows that were removed are not counted before there are any.
    assert {name: labels for name, labels in documented_labels().items() if shown[name]} == {
        name: labels for name, labels in shown.items() if labels
    }
    assert [name for name, labels in documented_labels().items() if labels and not shown[name]] == [
        "fal_proxy_retention_removed_total"
    ]


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_an_expression_names_only_existing_metrics_and_labels(where: str, scraped: Scrape) -> None:
    expression, known = EXPRESSIONS[where], documented_labels()
    samples = {one.name for one in scraped.samples} | metric_names(scraped)
    names = set(NAME.findall(expression))
    assert names and names <= samples, names - samples
    labels = {re.sub(r"_(bucket|sum|count)$", "", name): known.get(name, set()) for name in names}
    allowed = TARGET_LABELS.union(*(known[name] for name in labels))
    for name, selector in SELECTOR.findall(expression):
        used = set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", selector))
        assert used <= TARGET_LABELS | known[re.sub(r"_(bucket|sum|count)$", "", name)], (name, used)
    for grouping in GROUPING.findall(expression):
        assert set(re.split(r",\s*", grouping)) <= allowed, grouping


def test_the_dashboard_shows_every_metric_of_the_program() -> None:
    targets = [one["expr"] for panel in DASHBOARD["panels"] for one in panel.get("targets", [])]
    shown = {name for expression in targets for name in NAME.findall(expression)}
    shown |= {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
    assert {name for name in documented_labels() if name.startswith("fal_proxy")} <= shown


@pytest.mark.parametrize(
    ("label", "name"), [("error_type", "fal_proxy_refusals_total"), ("reason", "fal_proxy_upstream_refusals_total")]
)
def test_alerts_name_values_that_exist(label: str, name: str, scraped: Scrape) -> None:
    exist = {one.labels[label] for one in scraped.samples if one.name == name}
    named = [
        value
        for expression in EXPRESSIONS.values()
        for values in re.findall(rf'\b{label}=~?"([^"]*)"', expression)
        for value in values.split("|")
    ]
    assert named and set(named) <= exist


def test_every_alert_is_explained_and_no_other() -> None:
    table = rows(section(page("operations"), "Dashboard and alerts"))
    assert [(name, severity) for name, severity, *_ in table] == [
        (f'<a id="{alert["alert"].lower()}"></a>`{alert["alert"]}`', alert["labels"]["severity"]) for alert in ALERTS
    ]
    assert all(meaning and action for *_, meaning, action in table)


def test_every_alert_leads_to_its_explanation() -> None:
    links = {alert["alert"]: alert["annotations"]["runbook_url"] for alert in ALERTS}
    assert links == {name: f"{RUNBOOK}#{name.lower()}" for name in links}
    assert f"`{RUNBOOK}`" in page("operations") and RUNBOOK in RULES.read_text().partition("groups:")[0]


def test_every_alert_is_tested_in_trouble_and_out_of_it() -> None:
    tested = [(test["alertname"], bool(test["exp_alerts"])) for case in CASES for test in case["alert_rule_test"]]
    assert sorted(tested) == sorted((alert["alert"], fires) for alert in ALERTS for fires in (True, False))


@pytest.mark.tools
class TestByPromtool:
    def test_the_alerts_fire_only_in_trouble(self) -> None:
        done = promtool("test", "rules", RULES_TEST)
        assert done.returncode == 0, done.stdout + done.stderr

    @pytest.mark.parametrize(("expression", "fails"), [("vector(1) > 2", "fires"), ("vector(1)", "is silent")])
    def test_an_alert_that_does_not_work_is_found(self, expression: str, fails: str, tmp_path: Path) -> None:
        rules = yaml.safe_load(RULES.read_text())
        for rule in rules["groups"][0]["rules"]:
            rule["expr"] = expression
            rule.pop("for", None)
        (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
        (tmp_path / "rules_test.yaml").write_text(RULES_TEST.read_text())
        done = promtool("test", "rules", tmp_path / "rules_test.yaml")
        assert done.returncode != 0
        failed = set(re.findall(r"name: (\w+ [a-z ]+),", done.stdout + done.stderr))
        assert {f"{alert['alert']} {fails}" for alert in ALERTS} <= failed

    def test_every_expression_can_be_evaluated(self, tmp_path: Path) -> None:
        """The dashboard's too, with what Grafana puts in for its variables."""
        recorded = [
            {"record": f"expression:{number}", "expr": text.replace("$__rate_interval", "5m")}
            for number, text in enumerate(EXPRESSIONS.values())
            if not text.startswith("label_values")
        ]
        (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": recorded}]}))
        done = promtool("check", "rules", tmp_path / "rules.yaml")
        assert done.returncode == 0 and f"{len(recorded)} rules found" in done.stdout, done.stdout + done.stderr


def test_panels_have_a_place_and_an_id_of_their_own() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells) and max(x for x, _ in cells) < 24
    for panel in panels:
        assert all(one["datasource"]["uid"] == "${datasource}" for one in panel.get("targets", []))
