#!/usr/bin/env bash
# Install the pinned Helm into .tools/bin: built by Go, whose checksum database vouches for the source.
set -euo pipefail
helm=v3.22.0
kubernetes_minor=37 # what this Helm's client library is made for; it renders charts as if for that version

if [[ "$(.tools/bin/helm version --template '{{.Version}}' 2>/dev/null)" == "$helm" ]]; then
  exit 0
fi
echo "Building Helm $helm with Go (a few minutes, once)" >&2

source "$(dirname "${BASH_SOURCE[0]}")/go.sh"

# As Helm's own releases are linked; without it the program believes in a Kubernetes of years ago.
facts="-X helm.sh/helm/v3/internal/version.version=$helm"
for package in chartutil lint/rules; do
  facts+=" -X helm.sh/helm/v3/pkg/$package.k8sVersionMajor=1"
  facts+=" -X helm.sh/helm/v3/pkg/$package.k8sVersionMinor=$kubernetes_minor"
done
GOBIN="$PWD/.tools/bin" CGO_ENABLED=0 go install -ldflags "-s -w $facts" "helm.sh/helm/v3/cmd/helm@$helm"
