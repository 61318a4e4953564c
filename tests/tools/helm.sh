#!/usr/bin/env bash
# Install the pinned Helm into .tools/bin: built by Go, whose checksum database vouches for the source.
set -euo pipefail
helm=v3.22.0
kubernetes_minor=37 # what this Helm's client library is made for; it renders charts as if for that version
go=1.26.0           # the Go that this Helm asks for

if [[ "$(.tools/bin/helm version --template '{{.Version}}' 2>/dev/null)" == "$helm" ]]; then
  exit 0
fi
echo "Building Helm $helm with Go (a few minutes, once)" >&2

# From 1.21 on, Go fetches the newer Go that a program asks for. An older one (Debian 12's) can be told to: it is a
# module like any other, whose programs only have to be made executable.
if [[ -z "$(go env GOTOOLCHAIN)" ]]; then
  module="golang.org/toolchain@v0.0.1-go$go.$(go env GOOS)-$(go env GOARCH)"
  (cd / && go mod download "$module")
  GOROOT="$(go env GOMODCACHE)/$module"
  chmod -R u+w,a+x "$GOROOT/bin" "$GOROOT/pkg/tool"
  export GOROOT PATH="$GOROOT/bin:$PATH"
fi

# As Helm's own releases are linked; without it the program believes in a Kubernetes of years ago.
facts="-X helm.sh/helm/v3/internal/version.version=$helm"
for package in chartutil lint/rules; do
  facts+=" -X helm.sh/helm/v3/pkg/$package.k8sVersionMajor=1"
  facts+=" -X helm.sh/helm/v3/pkg/$package.k8sVersionMinor=$kubernetes_minor"
done
GOBIN="$PWD/.tools/bin" CGO_ENABLED=0 go install -ldflags "-s -w $facts" "helm.sh/helm/v3/cmd/helm@$helm"
