"""Users as commands name them."""

from __future__ import annotations

from proxy.auth.sessions import SUBJECT_RULE, is_subject
from proxy.cli.output import refuse


def check_user(subject: str, where: str = "--subject") -> None:
    """Refuse what is no name of a user, and say in which option or argument it stands."""
    if not is_subject(subject):
        refuse([f"{where}: {SUBJECT_RULE}"])


def check_filter(subject: str | None) -> None:
    """Refuse a filter `--subject` that is neither a user's name nor '', which is the tenant itself."""
    if subject:
        check_user(subject)
