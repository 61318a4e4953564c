"""The chart as the real helm renders it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.containers import ROOT

HELM = ROOT / ".tools" / "bin" / "helm"
CHART = ROOT / "helm"
VALUES_FILES = sorted((CHART / "ci").glob("*-values.yaml"))

Manifest = dict[str, Any]


def helm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([HELM, *arguments], capture_output=True, text=True, timeout=60)


def template(values_file: Path | None, **values: Any) -> subprocess.CompletedProcess[str]:
    """`helm template` with a values file and single values over it; `a__b=1` stands for `a.b`."""
    options = [f"--set-json={name.replace('__', '.')}={json.dumps(value)}" for name, value in values.items()]
    files = ["--values", values_file] if values_file else []
    return helm("template", "demo", CHART, "--namespace", "ai", *files, *options)


def render(values_file: Path, **values: Any) -> list[Manifest]:
    """All objects that the chart makes."""
    done = template(values_file, **values)
    assert done.returncode == 0, done.stderr
    return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]


def refusal(values_file: Path | None, **values: Any) -> str:
    """What helm says when it renders nothing."""
    done = template(values_file, **values)
    assert done.returncode != 0 and done.stdout == "", done.stdout
    return done.stderr


def of_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def the(manifests: list[Manifest], kind: str) -> Manifest:
    (manifest,) = of_kind(manifests, kind)
    return manifest


def pod_specs(manifests: list[Manifest]) -> list[Manifest]:
    """The pods of the Deployment and of the chart's own tests."""
    return [the(manifests, "Deployment")["spec"]["template"]["spec"], the(manifests, "Pod")["spec"]]


def container(manifests: list[Manifest]) -> Manifest:
    """The program's container."""
    containers = the(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
    (proxy,) = [one for one in containers if one["name"] == "proxy"]
    return proxy


def environ(manifests: list[Manifest]) -> dict[str, str]:
    """The program's environment variables that have a value here."""
    return {entry["name"]: entry["value"] for entry in container(manifests)["env"] if "value" in entry}
