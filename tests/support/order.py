"""The order of the files of tests, where several processes share them."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).parents[1]
#: The files that take longest (over twenty seconds each), longest first. They start first, so that no process of the
#: tests is left with one of them while the others have nothing to do any more.
LONGEST_FIRST = (
    "limits/test_store_faults.py",
    "limits/test_database_trouble.py",
    "deploy/test_image.py",
    "stores/test_writes_beside_the_ledger.py",
    "server/test_soak.py",
    "limits/test_names.py",
    "limits/test_crash.py",
    "upstream/test_guard.py",
    "browser/test_upload.py",
    "server/test_workers.py",
    "server/test_drain.py",
    "server/test_framing.py",
    "limits/test_dead_processes.py",
    "security/test_headers.py",
    "clients/test_javascript.py",
    "examples/test_minting.py",
    "browser/test_react_hook.py",
    "browser/test_secrets.py",
    "server/test_rolling_restart.py",
    "uploads/test_kill.py",
    "clients/test_python.py",
    "server/test_hang_ups.py",
    "stores/test_provider_urls.py",
    "uploads/test_memory.py",
    "routes/test_crowd.py",
    "server/test_serve.py",
    "browser/test_looks.py",
    "server/test_startup.py",
    "limits/test_store_down.py",
)
