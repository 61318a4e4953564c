#!/usr/bin/env bash
# Have the named programs, each given as program:package, the Debian package that brings it. Quick when all are there.
# Missing ones are installed when root; otherwise their packages are named, and this fails.
set -euo pipefail

packages=()
for entry in "$@"; do
  command -v "${entry%%:*}" >/dev/null || packages+=("${entry##*:}")
done
if (( ${#packages[@]} == 0 )); then
  exit 0
fi
if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
  echo "Missing on this machine. Install these (Debian's names), then try again: ${packages[*]}" >&2
  exit 1
fi

export DEBIAN_FRONTEND=noninteractive
# Another apt may be at work, and a mirror may hiccup: wait for the lock, and try the whole of it three times.
options=(-q -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3)
for attempt in 1 2 3; do
  # An unreachable list of another repository is no reason to stop: the installation decides.
  apt-get "${options[@]}" update >&2 || true
  if apt-get "${options[@]}" install -y --no-install-recommends "${packages[@]}" </dev/null >&2; then
    exit 0
  fi
  echo "apt-get failed (attempt $attempt of 3)" >&2
  sleep "$((attempt * 5))"
done
exit 1
