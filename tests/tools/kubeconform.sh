#!/usr/bin/env bash
# Install the pinned kubeconform into .tools/bin, and beside it in .tools/crds the definitions of the objects that are not
# Kubernetes' own: the Prometheus operator's and the Gateway API's; and the schema of compose files. All are Go modules, so
# Go's checksum database vouches for them.
set -euo pipefail
kubeconform=v0.8.0
operator=github.com/prometheus-operator/prometheus-operator@v0.85.0
gateway=sigs.k8s.io/gateway-api@v1.4.0
compose=github.com/compose-spec/compose-go/v2@v2.9.0
versions="$kubeconform $operator $gateway $compose"

if [[ -x .tools/bin/kubeconform && "$(cat .tools/crds/versions 2>/dev/null)" == "$versions" ]]; then
  exit 0
fi
echo "Building kubeconform $kubeconform with Go (a minute, once)" >&2
source "$(dirname "${BASH_SOURCE[0]}")/go.sh"

GOBIN="$PWD/.tools/bin" CGO_ENABLED=0 go install -ldflags "-s -w" "github.com/yannh/kubeconform/cmd/kubeconform@$kubeconform"
(cd / && go mod download "$operator" "$gateway" "$compose")
modules=$(go env GOMODCACHE)
mkdir -p .tools/crds
install -m 644 -t .tools/crds \
  "$modules/$operator/example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml" \
  "$modules/$operator/example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml" \
  "$modules/$compose/schema/compose-spec.json" \
  "$modules/$gateway/config/crd/standard/gateway.networking.k8s.io_httproutes.yaml"
echo "$versions" > .tools/crds/versions
