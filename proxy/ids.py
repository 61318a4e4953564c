"""Ids that are unlike any other. They open nothing, so they need not be secret.

The system is asked once for a seed, and once more in each forked process: to ask it for every id takes a hundredth of a
call. What seeds the generator that all modules share, such as a test, changes nothing here.
"""

from __future__ import annotations

import os
import random

_generator = random.Random()
os.register_at_fork(after_in_child=_generator.seed)


def draw_id(digits: int) -> str:
    """Give a new id of so many hexadecimal digits."""
    return f"{_generator.getrandbits(4 * digits):0{digits}x}"
