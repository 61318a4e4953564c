"""Print what pyproject.toml needs to build the project, one requirement a line."""

from __future__ import annotations

import tomllib
from pathlib import Path

pyproject = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
# hatchling asks for `editables` on top when the project is installed in place, as `make run` does.
print(*pyproject["build-system"]["requires"], "editables", sep="\n")
