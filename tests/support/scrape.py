"""What `/metrics` says, as Prometheus reads it."""

from __future__ import annotations

from dataclasses import dataclass

import httpx
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample


@dataclass(frozen=True)
class Scrape:
    families: list[Metric]

    @property
    def samples(self) -> list[Sample]:
        return [sample for family in self.families for sample in family.samples]

    def value(self, name: str, **labels: str) -> float:
        """The value of one sample; 0 if it is not there."""
        found = [one.value for one in self.samples if one.name == name and one.labels == labels]
        assert len(found) < 2, f"{name}{labels} stands there twice"
        return found[0] if found else 0.0

    def labels(self, name: str) -> set[str]:
        """The names of the labels of all samples of a name."""
        return {label for one in self.samples if one.name == name for label in one.labels}


def scrape(url: str) -> Scrape:
    answer = httpx.get(f"{url}/metrics", trust_env=False, verify=False, timeout=60).raise_for_status()
    return Scrape(list(text_string_to_metric_families(answer.text)))
