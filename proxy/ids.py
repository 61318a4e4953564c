"""Unique ids. They grant no access, so they need not be secret.

The generator is seeded by the system once, and again in each forked process: asking the system for every id would take
one per cent of a call. It is not the generator of `random`, which a test or a library may seed.
"""

from __future__ import annotations

import os
import random

_generator = random.Random()
os.register_at_fork(after_in_child=_generator.seed)


def draw_id(digits: int) -> str:
    """Make an id of `digits` hexadecimal digits."""
    return f"{_generator.getrandbits(4 * digits):0{digits}x}"
