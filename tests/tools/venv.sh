#!/usr/bin/env bash
# Make .venv with the given Python (3.11 or newer), or say in one line why not.
set -euo pipefail
python=${1:-python3}
here=$(dirname "${BASH_SOURCE[0]}")

if ! command -v "$python" >/dev/null; then
  echo "No '$python' found: fal-proxy needs Python 3.11 or newer (or name one: make PYTHON=/path/to/python3.13 ...)" >&2
  exit 1
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "$("$python" --version) is too old: fal-proxy needs Python 3.11 or newer (make PYTHON=... names another)" >&2
  exit 1
fi

# Debian ships the venv module without what it needs to work; that half is a package of its own.
if ! "$python" -c 'import ensurepip' 2>/dev/null; then
  "$here/apt.sh" :python3-venv # a package without a program of its own
fi
"$python" -m venv .venv
