"""The chart's objects conform to the schemas of Kubernetes and of the operators, from the oldest allowed version on."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.deploy.charts import CHART, VALUES_FILES, render, template
from tests.deploy.conformity import VERSIONS, kubeconform, write_schemas

pytestmark = [pytest.mark.tools, pytest.mark.slow]


@pytest.fixture(scope="module", params=VERSIONS)
def schemas(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("schemas")
    write_schemas(request.param, folder)
    return folder


def test_each_values_file_renders_what_kubernetes_accepts(schemas: Path) -> None:
    assert len(VALUES_FILES) == 8
    rendered = [template(path).stdout for path in VALUES_FILES]
    done = kubeconform(schemas, "\n---\n".join(rendered))
    count = sum(len(render(path)) for path in VALUES_FILES)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Summary: {count} resources found parsing stdin - Valid: {count}, Invalid: 0, Errors: 0, Skipped: 0" in (
        done.stdout
    )


WRONG = [
    ("Deployment", "spec", "replica", 2),
    ("Service", "spec", "ports", "http"),
    ("HorizontalPodAutoscaler", "spec", "minReplicas", "three"),
    ("ServiceMonitor", "spec", "endpoint", []),
    ("PrometheusRule", "spec", "groups", [{"rules": []}]),
    ("HTTPRoute", "spec", "hostnames", ["*.*"]),
    ("NetworkPolicy", "spec", "podSelector", []),
]


@pytest.mark.parametrize(("kind", "part", "name", "value"), WRONG, ids=[f"{kind}.{name}" for kind, _, name, _ in WRONG])
def test_an_object_that_does_not_conform_is_found(
    kind: str, part: str, name: str, value: object, schemas: Path
) -> None:
    manifest = next(one for path in VALUES_FILES for one in render(path) if one["kind"] == kind)
    manifest[part][name] = value
    done = kubeconform(schemas, yaml.safe_dump(manifest))
    assert done.returncode != 0 and "Invalid: 1" in done.stdout, done.stdout


def test_the_oldest_version_is_that_of_the_chart() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["kubeVersion"] == f">={VERSIONS[0]}-0"
