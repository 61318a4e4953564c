"""The garbage collector while the program starts, and afterwards."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.secrets import SECRET

#: Writes how many collections an application's building takes, and how the collector is left.
BUILD = """
import gc
from proxy.worker import application

generations = []
gc.callbacks.append(lambda phase, facts: generations.append(facts["generation"]) if phase == "stop" else None)
application()
print(len(generations), gc.isenabled(), gc.get_freeze_count() > 100_000, gc.get_threshold()[0] > 700)
"""
#: A block that fails, as the import of a broken installation does.
FAIL = """
import gc
from proxy.server.garbage import collections_paused

try:
    with collections_paused():
        assert not gc.isenabled()
        raise ImportError
except ImportError:
    print(gc.isenabled())
"""


@pytest.mark.parametrize(
    ("script", "printed"),
    [
        pytest.param(BUILD, "1 True True True", id="a worker collects once, when all is built"),
        pytest.param(FAIL, "True", id="collections go on after a failure"),
    ],
)
def test_a_start_is_not_held_up_by_collections(tmp_path: Path, script: str, printed: str) -> None:
    environ = {
        "FAL_KEY": "key:secret",
        "PROXY_SESSION_SECRETS": SECRET,
        "PROXY_DATABASE_URL": f"sqlite:///{tmp_path / 'jobs.db'}",
        "PROXY_LOG_LEVEL": "warning",
    }
    done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == printed


def test_the_command_is_imported_without_collections() -> None:
    script = "import gc, runpy, sys; sys.argv = ['proxy', '--version']; import proxy.__main__ as p\n"
    script += "try: p.run()\nexcept SystemExit: print(gc.isenabled(), gc.get_freeze_count() > 50_000)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-2:] == ["True", "True"]
