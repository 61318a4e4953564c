"""Install the published fal clients side by side below `.tools/clients`: `python -m tests.clients.install`.

Each set is installed again only when its manifest files have changed since.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
TOOLS = HERE.parents[1] / ".tools" / "clients"
PYTHON_VERSIONS = ("1.0.3", "0.13.2", "0.10.0")
NODE, JVM, GENERATED, KITS = TOOLS / "node", TOOLS / "jvm", TOOLS / "generated", TOOLS / "kits"


def python_of(version: str) -> Path:
    """The folder of the virtual environment with that version of the Python client."""
    return TOOLS / f"python-{version}"


def main() -> None:
    for home in (NODE, GENERATED, KITS):
        _install(home, [HERE / home.name / name for name in ("package.json", "package-lock.json", ".npmrc")], _node)
    for version in PYTHON_VERSIONS:
        _install(python_of(version), [HERE / "python" / f"requirements-{version}.txt"], _python)
    for name in ("generated", "kits"):
        _install(python_of(name), [HERE / name / "requirements.txt"], _python)
    _install(JVM, [HERE / "jvm" / "pom.xml", *sorted((HERE / "jvm" / "src").rglob("*.java"))], _jvm)


def _install(home: Path, manifests: list[Path], install: Callable[[Path, list[Path]], None]) -> None:
    stamp, wanted = home / "installed", _digest(manifests)
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print(f"installing {home.name}", file=sys.stderr)
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    install(home, manifests)
    stamp.write_text(wanted)


def _digest(manifests: list[Path]) -> str:
    digest = hashlib.sha256(sys.version.encode())
    for manifest in manifests:
        digest.update(manifest.name.encode() + manifest.read_bytes())
    return digest.hexdigest()


def _node(home: Path, manifests: list[Path]) -> None:
    for manifest in manifests:
        shutil.copy(manifest, home)
    _run("npm", "ci", "--ignore-scripts", "--no-progress", cwd=home)


def _python(home: Path, manifests: list[Path]) -> None:
    _run(sys.executable, "-m", "venv", "--clear", str(home))
    pip = (str(home / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet")
    _run(*pip, "install", "--require-hashes", "--no-deps", "-r", str(manifests[0]))


def _jvm(home: Path, manifests: list[Path]) -> None:
    goals = ("compile", "dependency:copy-dependencies")
    _run("mvn", "--quiet", "--batch-mode", "--no-transfer-progress", f"-Dhome={home}", *goals, cwd=manifests[0].parent)


def _run(*command: str, cwd: Path | None = None) -> None:
    subprocess.run(command, cwd=cwd, check=True, stdout=sys.stderr)


if __name__ == "__main__":
    main()
