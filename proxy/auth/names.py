"""Names that are new: of a user, of a key, and the reason of a grant.

A name can hold what no reader sees, such as a zero-width space, or what turns the direction of writing, so that two
users look like one. Names from before such characters were refused go on as they are.
"""

from __future__ import annotations

import re

from proxy.auth.sessions import SUBJECT_RULE, is_subject
from proxy.errors import BadRequest
from proxy.stores.ledger import JobFilter, Ledger

#: C1 controls, marks and isolates of direction, the line and paragraph separators, and what has no width (Unicode 15.1,
#: section 23). The two joiners, U+200C and U+200D, are part of words in Persian and Hindi, and of emoji.
_UNSEEN = re.compile("[\x80-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]")


def check_label(text: str) -> str:
    """Return a new text that operators read, if it shows all of itself.

    Raises:
        ValueError: it does not, is not printable, or too long.
    """
    if not is_subject(text):
        raise ValueError(SUBJECT_RULE)
    if unseen := _UNSEEN.search(text):
        raise ValueError(_describe(unseen[0]))
    return text


async def check_new_subject(ledger: Ledger, tenant: str, subject: str) -> None:
    """Make sure that the name of a user shows all of itself, unless a tenant has a user of that name already.

    Raises:
        BadRequest: it does not.
        StoreUnavailable: the ledger does not answer.
    """
    unseen = _UNSEEN.search(subject)
    if unseen is not None and not await ledger.list_jobs(JobFilter(tenant, subject), 1):
        raise BadRequest(f"subject: {_describe(unseen[0])}.")


def _describe(character: str) -> str:
    return f"has the character U+{ord(character):04X}, which is not seen; leave it out"
