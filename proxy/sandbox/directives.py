"""What a prompt asks of the sandbox itself: `[[fault …]]` and `[[pace …]]`, taken out before the model sees it.

A directive is a word and `name=value` pairs, without spaces inside a value. The first pair of a fault names it, its
value is the fault's main parameter: `[[fault drop=before]]`, `[[fault status=503]]`,
`[[fault stall=2 on=status-stream]]`. A fault without a main parameter stands alone: `[[fault gzip]]`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_DIRECTIVE = re.compile(r"\[\[\s*(fault|pace)\s+([^\]]*)\]\]")


@dataclass(frozen=True)
class Directives:
    """The directives of one prompt: the faults in order, each as its list of (name, value) pairs, and the pace."""

    faults: tuple[tuple[tuple[str, str], ...], ...]
    timing: dict[str, str]


NO_DIRECTIVES = Directives((), {})


def parse_directives(body: object) -> Directives:
    """Parse the directives in the `prompt` of a request body; none if there is no prompt."""
    prompt = body.get("prompt") if isinstance(body, dict) else None
    found = _DIRECTIVE.findall(prompt) if isinstance(prompt, str) else []
    pairs = [(kind, tuple(_pair(item) for item in text.split())) for kind, text in found]
    return Directives(
        faults=tuple(items for kind, items in pairs if kind == "fault" and items),
        timing={name: value for kind, items in pairs if kind == "pace" for name, value in items},
    )


def remove_directives(prompt: str) -> str:
    """Return the prompt as the model is to see it."""
    return " ".join(_DIRECTIVE.sub(" ", prompt).split()) if _DIRECTIVE.search(prompt) else prompt


def _pair(item: str) -> tuple[str, str]:
    name, _, value = item.partition("=")
    return name, value
