{{/* Names, labels, and what several templates have to agree on. */}}

{{- define "fal-proxy.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "fal-proxy.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains (include "fal-proxy.name" .) .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "fal-proxy.name" .) | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "fal-proxy.selectorLabels" -}}
app.kubernetes.io/name: {{ include "fal-proxy.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "fal-proxy.labels" -}}
{{ include "fal-proxy.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The annotations of an object, with those of all: a list of the root and its own. Nothing if there are none. */}}
{{- define "fal-proxy.annotations" -}}
{{- $root := index . 0 }}
{{- with merge (dict) (index . 1) $root.Values.commonAnnotations -}}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The name of something beside the proxy: a list of the root and what it ends with. */}}
{{- define "fal-proxy.nameWith" -}}
{{- $end := index . 1 }}
{{- printf "%s-%s" (include "fal-proxy.fullname" (index . 0) | trunc (int (sub 62 (len $end))) | trimSuffix "-") $end }}
{{- end }}

{{- define "fal-proxy.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) }}
{{- end }}
{{- end }}

{{- define "fal-proxy.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- .Values.serviceAccount.name | default (include "fal-proxy.fullname" .) }}
{{- else }}
{{- .Values.serviceAccount.name | default "default" }}
{{- end }}
{{- end }}

{{- define "fal-proxy.secretName" -}}
{{- .Values.existingSecret.name | default (include "fal-proxy.fullname" .) }}
{{- end }}

{{/* What the chart's own Secret holds: a YAML map of key to value, without what is not set. */}}
{{- define "fal-proxy.secretData" -}}
{{- $data := dict
  "fal-key" .Values.fal.key
  "usage-key" .Values.fal.usageKey
  "session-secrets" (join "," .Values.sessions.secrets)
  "admin-token" .Values.adminToken
  "database-url" .Values.database.url
  "redis-url" .Values.redis.url
  "alerts-secret" (join "," .Values.alerts.secrets)
  "oidc-client-secret" .Values.consoleOidc.clientSecret }}
{{- range $key, $value := $data }}
{{- if $value }}
{{ $key }}: {{ $value | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* The keys of the Secret in use, created by this chart or not: a YAML list. */}}
{{- define "fal-proxy.secretKeys" -}}
{{- if .Values.existingSecret.name }}
{{- toYaml .Values.existingSecret.keys }}
{{- else }}
{{- include "fal-proxy.secretData" . | fromYaml | keys | sortAlpha | toYaml }}
{{- end }}
{{- end }}

{{/* "true" while SQLite holds the data. */}}
{{- define "fal-proxy.usesSqlite" -}}
{{- if not (has "database-url" (include "fal-proxy.secretKeys" . | fromYamlArray)) }}true{{ end }}
{{- end }}

{{- define "fal-proxy.claimName" -}}
{{- .Values.persistence.existingClaim | default (include "fal-proxy.fullname" .) }}
{{- end }}

{{/* The plan file and the schemas beside it: a YAML map of file name to content. */}}
{{- define "fal-proxy.configFiles" -}}
{{- if .Values.config }}
config.yaml: |
  {{- toYaml .Values.config | nindent 2 }}
{{- range $name, $schema := .Values.schemas }}
{{ $name }}: |
  {{- $schema | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}

{{- define "fal-proxy.publicUrl" -}}
{{- if .Values.publicUrl }}
{{- .Values.publicUrl }}
{{- else if and .Values.ingress.enabled .Values.ingress.hosts }}
{{- printf "%s://%s" (ternary "https" "http" (not (empty .Values.ingress.tls))) (first .Values.ingress.hosts).host }}
{{- else if and .Values.httpRoute.enabled .Values.httpRoute.hostnames }}
{{- printf "https://%s" (first .Values.httpRoute.hostnames) }}
{{- else }}
{{- printf "http://%s.%s.svc:%v" (include "fal-proxy.fullname" .) .Release.Namespace .Values.service.port }}
{{- end }}
{{- end }}

{{/* The port of the container that /metrics, /readyz and /v1/admin are on. */}}
{{- define "fal-proxy.opsPortName" -}}
{{- if .Values.opsPort }}ops{{ else }}http{{ end }}
{{- end }}

{{/* A quantity of memory, as Kubernetes writes it, in bytes. */}}
{{- define "fal-proxy.bytes" -}}
{{- if kindIs "string" . }}
{{- $factors := dict "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 "k" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 "" 1 }}
{{- mulf (regexFind "^[0-9.]+" . | float64) (get $factors (regexFind "[A-Za-z]*$" .) | float64) | int64 }}
{{- else }}
{{- int64 . }}
{{- end }}
{{- end }}

{{/* What an idle process takes, and what an event stream does with the job that it follows: docs/performance.md. */}}
{{- define "fal-proxy.idleBytes" -}}
136314880
{{- end }}
{{- define "fal-proxy.streamBytes" -}}
31744
{{- end }}
{{/* What one picture may take while its metadata is removed: docs/limits.md. */}}
{{- define "fal-proxy.pictureBytes" -}}
805306368
{{- end }}

{{/* The memory for all pictures at once, if a plan works on any. */}}
{{- define "fal-proxy.neededForPictures" -}}
{{- $needed := 0 }}
{{- range (.Values.config.plans | default dict) }}
{{- if .strip_metadata }}
{{- $needed = mul (include "fal-proxy.pictureBytes" $ | int64) (int64 $.Values.pictureProcesses) }}
{{- end }}
{{- end }}
{{- $needed }}
{{- end }}

{{/* The memory that the program can come to need. */}}
{{- define "fal-proxy.neededBytes" -}}
{{- add (include "fal-proxy.idleBytes" . | int64) (mul (include "fal-proxy.streamBytes" . | int64) (int64 .Values.maxStreams)) (int64 .Values.maxBodyMemory) (include "fal-proxy.neededForPictures" . | int64) }}
{{- end }}

{{/* The ports in the URL of a store, which may name several servers, as rules of a NetworkPolicy: a list of it and the
usual port. */}}
{{- define "fal-proxy.portsOf" -}}
{{- $usual := index . 1 | toString }}
{{- $ports := list }}
{{- range splitList "," (regexReplaceAll "^[a-z]+://([^/?#]*@)?([^/?#]*).*$" (index . 0 | default "") "${2}") }}
{{- $ports = append $ports (regexFind ":[0-9]+$" . | trimPrefix ":" | default $usual) }}
{{- end }}
{{- range uniq $ports }}
- {protocol: TCP, port: {{ . }}}
{{- end }}
{{- end }}
