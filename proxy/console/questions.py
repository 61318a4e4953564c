"""What the console asks before an action that stops something."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """A question that a page asks, and the two ways to answer it.

    Attributes:
        text: the question itself.
        consequence: what the action does, and whether it can be undone.
        button: what the button says that does it.
        back: the page below `/console` that changes nothing; names of others in it are percent-encoded.
    """

    text: str
    consequence: str
    button: str
    back: str
