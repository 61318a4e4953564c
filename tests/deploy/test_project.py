"""What the project's own files must and must not say."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent.parent
REQUIREMENTS = ROOT / "requirements"
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def tracked_texts() -> dict[str, str]:
    """The content of every text file of the project, by path; pictures and the like left out."""
    texts = {}
    for path in tracked_files():
        content = path.read_bytes()
        if b"\0" not in content:
            texts[str(path.relative_to(ROOT))] = content.decode()
    return texts


def pins(name: str) -> dict[str, list[Requirement]]:
    """The pinned requirements of a file by their canonical name; checks that every one has its hashes."""
    logical = (REQUIREMENTS / name).read_text().replace("\\\n", " ").splitlines()
    found: dict[str, list[Requirement]] = {}
    for line in logical:
        specification, *hashes = re.split(r"\s+--hash=sha256:", line.strip())
        assert hashes and all(re.fullmatch(r"[0-9a-f]{64}", one) for one in hashes), line
        requirement = Requirement(specification)
        found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


def versions(name: str) -> dict[str, set[str]]:
    """The versions of a file's requirements; what the development installs may be needed on more platforms there."""
    return {project: {str(pin.specifier) for pin in found} for project, found in pins(name).items()}


def wanted(group: str) -> list[Requirement]:
    groups = {
        "runtime": PYPROJECT["project"]["dependencies"],
        "otel": PYPROJECT["project"]["dependencies"] + PYPROJECT["project"]["optional-dependencies"]["otel"],
        "dev": PYPROJECT["project"]["dependencies"] + list_group("dev"),
        "sbom": list_group("sbom"),
        "build": PYPROJECT["build-system"]["requires"],
    }
    return [Requirement(text) for text in groups[group]]


def list_group(name: str) -> list[str]:
    """The requirements of a dependency group, with those of the groups that it includes (PEP 735)."""
    listed: list[str] = []
    for entry in PYPROJECT["dependency-groups"][name]:
        listed += [entry] if isinstance(entry, str) else list_group(entry["include-group"])
    return listed


@pytest.mark.parametrize("name", ["runtime", "otel", "dev", "sbom", "build"])
def test_every_dependency_is_pinned_within_its_range_and_hashed(name: str) -> None:
    pinned = pins(f"{name}.txt")
    for requirement in wanted(name):
        for pin in pinned[canonicalize_name(requirement.name)]:
            (specifier,) = pin.specifier
            assert specifier.operator == "==" and requirement.specifier.contains(specifier.version), requirement


def test_the_requirement_files_agree_with_each_other() -> None:
    runtime, dev, build, otel = (versions(f"{name}.txt") for name in ("runtime", "dev", "build", "otel"))
    assert all(dev[name] == found for name, found in otel.items())
    assert all(otel[name] == found for name, found in runtime.items())
    assert all(dev.get(name, found) == found for name, found in build.items())


def imported_by_the_program() -> set[str]:
    """Top-level names of the modules that proxy/ imports from elsewhere."""
    names: set[str] = set()
    for path in (ROOT / "proxy").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.add(str(node.module).partition(".")[0])
    return names - set(sys.stdlib_module_names) - {"proxy"}


def test_the_program_declares_what_it_imports() -> None:
    """A package that only happens to be installed here would be missing in production."""
    distributions = importlib.metadata.packages_distributions()
    extras = [Requirement(text) for extra in PYPROJECT["project"]["optional-dependencies"].values() for text in extra]
    declared = {canonicalize_name(requirement.name) for requirement in wanted("runtime") + extras}
    imported = imported_by_the_program()
    assert "starlette" in imported
    for module in imported:
        assert declared & {canonicalize_name(name) for name in distributions[module]}, module


#: Where this machine and this day's registries are, which no file of the project may depend on. Written in halves so
#: that this file does not say it either.
DOWNLOAD_ADDRESSES = re.compile(
    r"files\.python" r"hosted\.org|registry\.npm" r"js\.org|registry\.yarn" r"pkg\.com"
    r"|repo1\.maven|pypi\.org/sim" r"ple"
    r"|--(extra-)?index-" r"url|--find-" r"links"
)  # fmt: skip


def test_no_file_has_a_download_address() -> None:
    found = {name: match[0] for name, text in tracked_texts().items() if (match := DOWNLOAD_ADDRESSES.search(text))}
    assert not found


def test_no_lock_file_resolves_to_an_address() -> None:
    locks = {name: text for name, text in tracked_texts().items() if name.endswith("package-lock.json")}
    assert locks
    assert not [name for name, text in locks.items() if '"resolved"' in text]


def test_installed_and_built_files_are_not_committed() -> None:
    names = [str(path.relative_to(ROOT)) for path in tracked_files()]
    assert "uv.lock" not in names
    assert not [name for name in names if re.search(r"(^|/)(node_modules|\.venv|\.tools|__pycache__|bundle)/", name)]


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    # Without the flags of the `make` that this test may itself be run by.
    environ = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, env=environ)


COMMANDS = ("run", "test", "test-fast", "lint", "types", "bench", "bundle", "image", "wheel", "requirements", "clean")


@pytest.mark.parametrize("target", COMMANDS)
def test_make_knows_the_command_and_explains_it(target: str) -> None:
    planned = make("-n", "IMAGE_BUILDER=docker", target)
    assert planned.returncode == 0, planned.stderr
    assert re.search(rf"^  make {target} +\S", make().stdout, re.MULTILINE)


def test_the_tests_end_with_pytest_so_that_its_summary_is_the_last_line() -> None:
    assert "python -m pytest" in make("-n", "test").stdout.splitlines()[-1]


def test_ci_runs_the_command_that_people_run() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash" and "set -euo pipefail" in lines
    assert lines[-1] == "exec make test </dev/null"
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


@pytest.mark.parametrize("script", sorted((ROOT / "tests" / "tools").glob("*.sh")), ids=lambda path: path.name)
def test_a_shell_script_is_executable_and_stops_at_errors(script: Path) -> None:
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in script.read_text()
    assert subprocess.run(["bash", "-n", script]).returncode == 0


def venv_script(path: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["/bin/bash", str(ROOT / "tests" / "tools" / "venv.sh"), *arguments]
    return subprocess.run(command, env={"PATH": path}, capture_output=True, text=True)


def test_without_python_it_says_which_one_is_needed() -> None:
    said = venv_script("/usr/bin:/bin", "python-of-nobody")
    assert said.returncode == 1
    assert said.stderr.startswith("No 'python-of-nobody' found: fal-proxy needs Python 3.11 or newer")


def test_with_an_old_python_it_says_that_it_is_too_old(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.2" && exit 0\nexit 1\n')
    old.chmod(0o755)
    said = venv_script(f"{tmp_path}:/usr/bin:/bin")
    assert said.returncode == 1
    assert said.stderr.startswith("Python 3.9.2 is too old: fal-proxy needs Python 3.11 or newer")


def test_users_without_root_see_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "id").write_text("#!/bin/sh\necho 1000\n")
    (tmp_path / "id").chmod(0o755)
    command = ["/bin/bash", str(ROOT / "tests" / "tools" / "apt.sh"), "bash:bash", "nobodys-program:nobodys-package"]
    said = subprocess.run(command, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True)
    assert said.returncode == 1
    assert said.stderr.strip().endswith("then try again: nobodys-package")


def dockerfile() -> list[str]:
    """The Dockerfile's instructions, continuation lines joined, comments left out."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def test_the_image_takes_only_hashed_wheels() -> None:
    commands = [part for line in dockerfile() if line.startswith("RUN") for part in line.split("&&")]
    from_outside = [part for part in commands if "pip" in part and " install " in part and "--no-index" not in part]
    assert len(from_outside) == 3
    assert all("--require-hashes" in part and "--only-binary :all:" in part for part in from_outside)


def test_make_passes_on_what_the_image_is_built_with() -> None:
    asked = {"PICTURES": "on", "OTEL": "on", "PROJECT_URL": "https://git.example.com/acme/fal-proxy"}
    words = [f"{name}={value}" for name, value in asked.items()]
    planned = make("-n", "IMAGE_BUILDER=docker", *words, "image").stdout
    assert all(f"--build-arg {word}" in planned for word in words)
    arguments = {line.split()[1].partition("=")[0] for line in dockerfile() if line.startswith("ARG")}
    assert arguments - {"PYTHON_IMAGE"} == set(re.findall(r"--build-arg (\w+)=", planned))


def test_the_image_ends_as_a_numbered_user_without_a_shell() -> None:
    last_stage = dockerfile()[max(n for n, line in enumerate(dockerfile()) if line.startswith("FROM")) :]
    assert "USER 10001:10001" in last_stage
    assert 'ENTRYPOINT ["python", "-m", "proxy"]' in last_stage
    assert not [line for line in last_stage if re.match(r"(ADD|.*curl|.*apt-get)", line)]
    assert not [line for line in dockerfile() if re.match(r"(ARG|ENV).*(KEY|SECRET|TOKEN)", line)]


def test_the_build_sees_only_what_it_names() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    copied = {
        source
        for line in dockerfile()
        if line.startswith("COPY") and "--from" not in line
        for source in line.split()[1:-1]
    }
    allowed = [rule[1:] for rule in rules if rule.startswith("!")]
    assert all(any(fnmatchcase(source.rstrip("/"), rule) for rule in allowed) for source in copied)
