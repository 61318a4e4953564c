#!/usr/bin/env bash
# Have the Python of the image's Debian in .tools/debian, to run on this machine: with the C library it was built for.
set -euo pipefail
debian=trixie
root="$PWD/.tools/debian"

# Absolute paths are written into it, so it does not outlive a move of the checkout.
if "$root/usr/bin/python3" -c '' 2>/dev/null; then
  exit 0
fi
tests/tools/apt.sh debootstrap:debootstrap patchelf:patchelf
echo "Unpacking the Python of Debian $debian (two minutes, once)" >&2
rm -rf "$root"
debootstrap --variant=minbase --include=python3,python3-venv "$debian" "$root" >&2
python="$(readlink -f "$root/usr/bin/python3")"
patchelf --set-interpreter "$root/usr$(patchelf --print-interpreter "$python")" --force-rpath \
  --set-rpath "$root/usr/lib/$(uname -m)-linux-gnu" "$python"
