"""Install the official proxy below `.tools/comparison`, as published: `python -m tests.comparison.install`.

It is installed again only when its manifest files have changed since.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

NODE = Path(__file__).parent / "node"
HOME = Path(__file__).parents[2] / ".tools" / "comparison"
_MANIFESTS = [NODE / name for name in ("package.json", "package-lock.json", ".npmrc")]


def main() -> None:
    stamp, wanted = HOME / "installed", _digest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print("installing the official proxy", file=sys.stderr)
    shutil.rmtree(HOME, ignore_errors=True)
    HOME.mkdir(parents=True)
    for manifest in _MANIFESTS:
        shutil.copy(manifest, HOME)
    command = ["npm", "ci", "--ignore-scripts", "--no-progress"]
    subprocess.run(command, cwd=HOME, check=True, stdout=sys.stderr)
    stamp.write_text(wanted)


def _digest() -> str:
    return hashlib.sha256(b"".join(manifest.read_bytes() for manifest in _MANIFESTS)).hexdigest()


if __name__ == "__main__":
    main()
