"""Writes the README of the chart from its values and their schema: `python -m tests.deploy.chart_readme`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parents[2] / "helm"
README = CHART / "README.md"
_HEAD = """# The fal-proxy chart

{description}

This page is written from `values.schema.json` by `python -m tests.deploy.chart_readme`.

## Install

```sh
helm install proxy ./helm --namespace ai --create-namespace \\
  --set fal.key="$FAL_KEY" --set "sessions.secrets={{$(openssl rand -base64 48)}}"
helm test proxy --namespace ai
```

That is one pod with SQLite on a volume. For more pods, set `database.url` and `redis.url`. `ci/` has values for other
cases: an Ingress, a Gateway, OpenShift, monitoring, secrets of your own. The chart needs Kubernetes {kubernetes}.

- **Operators.** `/metrics`, `/readyz`, `/v1/admin` and `/console` are on `opsPort`, which no Ingress or
  HTTPRoute leads to.
- **Network policy.** It is on. Name the namespaces of your ingress controller and of Prometheus in
  `networkPolicy.callerNamespaces` and `networkPolicy.operatorNamespaces`.
- **Schema.** With PostgreSQL, an init container runs `fal-proxy migrate` before each start. It is not a Job: as a hook
  it would run before the Secret that the chart makes, and `helm template` with `kubectl apply` would not run it. If
  several pods start, one migrates and the others wait.
- **Memory.** The limit must have room for `maxStreams` ({stream_kib} KiB each) and `maxBodyMemory` beside the
  {idle_mib} MiB of an idle pod; the chart refuses less.
- **Watching.** `serviceMonitor`, `prometheusRule` and `dashboard` need the Prometheus operator and Grafana's sidecar.
  `docs/operations.md` explains each alert.

## Values

| value | default | meaning |
|---|---|---|
"""


def figure(name: str) -> int:
    """One of the figures of the chart's helpers, in bytes."""
    text = (CHART / "templates" / "_helpers.tpl").read_text()
    return int(text.partition(f'define "fal-proxy.{name}" -}}}}\n')[2].split()[0])


def rows(schema: dict[str, Any], values: Any, path: str = "") -> Iterator[str]:
    """A line for each value that has no values of its own below it."""
    for name, default in values.items():
        below, full = schema["properties"][name], f"{path}{name}"
        if isinstance(default, dict) and default and "properties" in below and "description" not in below:
            yield from rows(below, default, f"{full}.")
        else:
            shown = json.dumps(default, ensure_ascii=False)
            yield f"| `{full}` | `{shown}` | {_meaning(below)} |"


def _meaning(schema: dict[str, Any]) -> str:
    choices = schema.get("enum")
    listed = f" One of {', '.join(f'`{choice}`' for choice in choices)}." if choices else ""
    return f"{schema['description']}{listed}"


def text() -> str:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    head = _HEAD.format(
        description=chart["description"],
        kubernetes=chart["kubeVersion"].removeprefix(">=").removesuffix(".0-0") + " or newer",
        stream_kib=figure("streamBytes") // 1024,
        idle_mib=figure("idleBytes") // 1024**2,
    )
    return head + "\n".join(rows(schema, yaml.safe_load((CHART / "values.yaml").read_text()))) + "\n"


if __name__ == "__main__":
    README.write_text(text())
