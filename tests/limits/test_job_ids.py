"""The ids under which the ledger has calls: in the order of time, and no two alike in any process."""

from __future__ import annotations

import random
import subprocess
import sys

from proxy.limits.quotas import new_job_id

#: A process and its fork each write the next ids that they would give.
FORK = """
import os
from proxy.limits.quotas import new_job_id

new_job_id(1.0)
child = os.fork()
text = "".join(f"{new_job_id(1.0)}\\n" for _ in range(20))
os.write(1, text.encode())
if child:
    os.waitpid(child, 0)
"""


def test_ids_grow_with_time_and_fit_their_column() -> None:
    ids = [new_job_id(1_795_000_000 + number / 8) for number in range(100)]
    assert ids == sorted(ids) and {len(one) for one in ids} == {32}


def test_ids_of_one_moment_differ_also_in_a_fork() -> None:
    found = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, check=True, timeout=120)
    ids = found.stdout.split()
    assert len(ids) == 40 == len(set(ids))


def test_ids_differ_whatever_seeds_the_generator_of_all() -> None:
    state = random.getstate()
    try:
        ids = set()
        for _ in range(5):
            random.seed(0)
            ids.add(new_job_id(1.0))
    finally:
        random.setstate(state)
    assert len(ids) == 5
