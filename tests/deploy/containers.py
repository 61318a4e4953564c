"""Build and run images without a container engine: buildah with chroot isolation, and a storage of its own.

No image registry is asked. The base image that the Dockerfile names is made from Debian's packages (the same Debian and
the same Python as the official one) under the same name, once, and kept in `.tools/`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
STORAGE = ROOT / ".tools" / "containers"
BUILDAH = (
    "buildah", "--storage-driver", "vfs", "--root", str(STORAGE / "storage"), "--runroot", str(STORAGE / "run"),
)  # fmt: skip
DEBIAN = "trixie"
PACKAGES = ("python3", "python3-venv", "python3-pip", "ca-certificates")
#: The builder's pip trusts what this machine trusts. A mount of the build, so no part of the image.
CERTIFICATES = "/etc/ssl/certs:/etc/ssl/certs:ro"
#: For Python: print what is installed in its environment, as `name==version`.
LIST_PACKAGES = "from importlib.metadata import distributions as d; print(*(f'{o.name}=={o.version}' for o in d()))"


def buildah(*arguments: str | Path) -> str:
    """Run one buildah command; its standard output.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    done = subprocess.run([*BUILDAH, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"buildah {arguments[0]} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def base_image_name() -> str:
    match = re.search(r"^ARG PYTHON_IMAGE=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert match, "the Dockerfile does not name its base image"
    return match[1]


def tidy() -> None:
    """Remove the containers and the unnamed images that earlier runs left behind."""
    buildah("rm", "--all")
    buildah("rmi", "--prune")


def ensure_base_image() -> None:
    """Have the base image in the storage, under the name that the Dockerfile gives it."""
    if buildah("images", "--quiet", "--filter", f"reference={base_image_name()}").strip():
        return
    with tempfile.TemporaryDirectory(dir=ROOT / ".tools") as folder:
        root = Path(folder) / "root"
        _debian(root)
        container = buildah("from", "scratch").strip()
        buildah("add", "--quiet", container, root, "/")
        buildah("commit", "--quiet", "--rm", container, base_image_name())


def _debian(root: Path) -> None:
    command = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", DEBIAN, str(root)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    # As in the official image.
    (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
    for cache in ("var/cache/apt", "var/lib/apt/lists"):
        shutil.rmtree(root / cache)


def build(context: Path, tag: str, *, environ: Mapping[str, str], arguments: Mapping[str, str]) -> None:
    """Build the Dockerfile in `context` with build arguments, and with `environ` around the build."""
    facts = [f"--build-arg={name}={value}" for name, value in arguments.items()]
    command = [*BUILDAH, "bud", "--isolation", "chroot", "--network", "host", "--pull-never", "--format", "docker",
               "--volume", CERTIFICATES, "--tag", tag, *facts, str(context)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environ})
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]


def configuration(tag: str) -> dict[str, Any]:
    """What the image says of itself: `config`, `history` and the layers."""
    described: dict[str, Any] = json.loads(json.loads(buildah("inspect", "--type", "image", tag))["Config"])
    return described


def layer_sizes(tag: str) -> list[int]:
    """Bytes of each layer, the base image's first."""
    manifest = json.loads(json.loads(buildah("inspect", "--type", "image", tag))["Manifest"])
    return [layer["size"] for layer in manifest["layers"]]


@dataclass
class Container:
    """A container of an image. `environ` and `mounts` (source:target:options) hold for everything run in it."""

    tag: str
    environ: Mapping[str, str] = field(default_factory=dict)
    mounts: Sequence[str] = ()

    def __enter__(self) -> Container:
        self.name = buildah("from", "--pull-never", self.tag).strip()
        config = configuration(self.tag)["config"]
        self.entrypoint, self.default_command = config["Entrypoint"], config["Cmd"]
        return self

    def __exit__(self, *_: object) -> None:
        buildah("rm", self.name)

    def start(self, *command: str, **streams: Any) -> subprocess.Popen[str]:
        """Start any command in the container, as the image's user; its entrypoint is not added."""
        options = [f"--env={name}={value}" for name, value in self.environ.items()]
        options += [f"--volume={mount}" for mount in self.mounts]
        return subprocess.Popen(
            [*BUILDAH, "run", "--isolation", "chroot", "--network", "host", *options, self.name, "--", *command],
            stdin=subprocess.DEVNULL,
            text=True,
            **streams,
        )

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        with self.start(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            stdout, stderr = process.communicate(timeout=180)
        return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def send_stop_signal(process: subprocess.Popen[str]) -> None:
    """SIGTERM to the program in the container, as an engine would; buildah itself passes on nothing but SIGKILL."""
    pid = process.pid
    while children := _children(pid):
        pid = children[0]
    os.kill(pid, signal.SIGTERM)


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]
