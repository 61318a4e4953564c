"""Which proxy runs which check, and the symptom of the official proxy's failure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from proxy.sandbox.app import SANDBOX_KEY

ADAPTERS = ("express", "hono", "remix", "svelte")
WHOLE_KEY = {"FAL_KEY": SANDBOX_KEY}
HALVED_KEY = dict(zip(("FAL_KEY_ID", "FAL_KEY_SECRET"), SANDBOX_KEY.split(":"), strict=True))


@dataclass(frozen=True)
class Entrant:
    """A proxy that runs a check.

    Attributes:
        adapter: of the official proxy; '' is this project's.
        configuration: of the official proxy, one of `server.mjs`.
        symptom: what the failed check says; '' if it must pass.
        key: the variables that hold fal's key.
    """

    adapter: str = ""
    configuration: str = "careful"
    symptom: str = ""
    key: Mapping[str, str] = field(default_factory=lambda: WHOLE_KEY)


def everywhere(symptom: str) -> dict[str, str]:
    """The same symptom on every adapter."""
    return dict.fromkeys(ADAPTERS, symptom)


def compared(
    symptoms: Mapping[str, str], *, configuration: str = "careful", key: Mapping[str, str] = WHOLE_KEY
) -> pytest.MarkDecorator:
    """Let this proxy run a check, and the official one on each adapter for which a symptom is given."""
    officials = [Entrant(adapter, configuration, symptom, key) for adapter, symptom in symptoms.items()]
    ids = ["fal-proxy", *(f"official-{adapter}" for adapter in symptoms)]
    return pytest.mark.parametrize("contest", [Entrant(key=key), *officials], indirect=True, ids=ids)
