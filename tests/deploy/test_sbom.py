"""`make sbom`: the packages that a server runs on, listed by a tool. The image's own list is in test_image.py."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.deploy.containers import LIST_PACKAGES, ROOT


@pytest.mark.tools
@pytest.mark.timeout(600)
def test_every_installed_package_is_listed_with_its_version() -> None:
    subprocess.run(["make", "sbom"], cwd=ROOT, check=True, capture_output=True, timeout=550)
    listed = json.loads((ROOT / "build" / "sbom.cdx.json").read_text())
    python = ROOT / "build" / "server" / "bin" / "python"
    installed = subprocess.run([python, "-I", "-c", LIST_PACKAGES], capture_output=True, text=True, check=True)
    assert {f"{one['name']}=={one['version']}" for one in listed["components"]} == set(installed.stdout.split())
    assert (listed["bomFormat"], listed["metadata"]["component"]["name"]) == ("CycloneDX", "fal-proxy")
