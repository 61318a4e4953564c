"""kubeconform, and the schemas that it checks with: nothing is downloaded while tests run.

Those of Kubernetes' own objects come with the package kubernetes-validate, for each version. Those of the Prometheus
operator and the Gateway API are made of their definitions, which `make tools` takes from their Go modules.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.containers import ROOT

KUBECONFORM = ROOT / ".tools" / "bin" / "kubeconform"
DEFINITIONS = ROOT / ".tools" / "crds"
#: The oldest that the chart allows, and the newest that the package knows.
VERSIONS = ("1.25.0", "1.37.0")
#: The place where the package's schemas look for what they share.
_SHARED = '"/api/_definitions.json#'
_KINDS = frozenset(
    {
        "configmap",
        "deployment",
        "horizontalpodautoscaler",
        "ingress",
        "networkpolicy",
        "persistentvolumeclaim",
        "pod",
        "poddisruptionbudget",
        "secret",
        "service",
        "serviceaccount",
    }
)
_REFERENCE = re.compile(r'"#/\$defs/([^"]+)"')


def write_schemas(version: str, folder: Path) -> None:
    """Write the schemas of a version of Kubernetes, and those of the operators, under the names that kubeconform asks
    for."""
    package = _package_folder(version)
    shared = json.loads((package / "_definitions.json").read_text())["$defs"]
    for path in package.glob("*.json"):
        if path.name.partition("-")[0] in _KINDS:
            schema = json.loads(path.read_text().replace(_SHARED, '"#'))
            (folder / path.name).write_text(json.dumps(schema | {"$defs": _used_by(schema, shared)}))
    for path in sorted(DEFINITIONS.glob("*.yaml")):
        definition = yaml.load(path.read_text(), yaml.CSafeLoader)["spec"]
        kind, group = definition["names"]["singular"], definition["group"].partition(".")[0]
        for served in definition["versions"]:
            schema = _close(served["schema"]["openAPIV3Schema"])
            (folder / f"{kind}-{group}-{served['name']}.json").write_text(json.dumps(schema))


def _package_folder(version: str) -> Path:
    package = importlib.util.find_spec("kubernetes_validate")
    assert package is not None and package.origin is not None
    return Path(package.origin).parent / "kubernetes-json-schema" / f"v{version}-local-strict"


def _used_by(schema: Any, shared: dict[str, Any]) -> dict[str, Any]:
    """The definitions that a schema refers to, also by way of others: kubeconform follows no reference to a file."""
    found: dict[str, Any] = {}
    waiting = [schema]
    while waiting:
        for name in set(_REFERENCE.findall(json.dumps(waiting.pop()))) - found.keys():
            found[name] = shared[name]
            waiting.append(shared[name])
    return found


def _close(schema: Any) -> Any:
    """Allow no names in a schema but those that it has: a server would drop others without a word."""
    if isinstance(schema, list):
        return [_close(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _close(one) for name, one in schema.items()}
    if isinstance(closed.get("properties"), dict) and not closed.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    return closed


def kubeconform(schemas: Path, manifests: str) -> subprocess.CompletedProcess[str]:
    location = f"{schemas}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"
    command = [KUBECONFORM, "-strict", "-summary", "-schema-location", location, "-"]
    return subprocess.run(command, input=manifests, capture_output=True, text=True, timeout=110)
