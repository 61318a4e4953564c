#!/usr/bin/env bash
# Sourced by scripts that build programs with Go: has a Go that is new enough in PATH.
# From 1.21 on, Go fetches the newer Go that a program asks for. An older one (Debian 12's) can use it too: it is a
# module like any other, whose programs only have to be made executable.
set -euo pipefail
go=1.26.0 # the newest Go that one of the programs asks for
if [[ -z "$(go env GOTOOLCHAIN)" ]]; then
  module="golang.org/toolchain@v0.0.1-go$go.$(go env GOOS)-$(go env GOARCH)"
  (cd / && go mod download "$module")
  GOROOT="$(go env GOMODCACHE)/$module"
  chmod -R u+w,a+x "$GOROOT/bin" "$GOROOT/pkg/tool"
  export GOROOT PATH="$GOROOT/bin:$PATH"
fi
