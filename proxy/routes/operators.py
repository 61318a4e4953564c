"""What the operator's routes share: the subject that a form or a query names, and the length of a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator

from proxy.auth.sessions import SUBJECT_RULE, is_subject
from proxy.errors import BadRequest

#: Entries on one page of a listing, and the most.
MOST_LISTED = 500


def _check_subject(subject: str) -> str:
    if not is_subject(subject):
        raise ValueError(SUBJECT_RULE)
    return subject


Subject = Annotated[str, AfterValidator(_check_subject)]


def subject_of(query: Mapping[str, str]) -> str | None:
    """Return the subject that a query names; '' is the tenant itself, and None all of them.

    Raises:
        BadRequest: it is not a name for a user.
    """
    subject = query.get("subject")
    if subject and not is_subject(subject):
        raise BadRequest(f"subject {SUBJECT_RULE}.")
    return subject
