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
  "session-secrets" (join "," .Values.sessions.secrets)
  "admin-token" .Values.adminToken
  "database-url" .Values.database.url
  "redis-url" .Values.redis.url }}
{{- range $key, $value := $data }}
{{- if $value }}
{{ $key }}: {{ $value | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* The keys of the Secret in use, whoever made it: a YAML list. */}}
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
{{- else }}
{{- printf "http://%s.%s.svc:%v" (include "fal-proxy.fullname" .) .Release.Namespace .Values.service.port }}
{{- end }}
{{- end }}

{{/* Every container of the chart: nobody's user, no privileges, nothing to write to. */}}
{{- define "fal-proxy.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "fal-proxy.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* The port of the container that /metrics, /readyz and /v1/admin are on. */}}
{{- define "fal-proxy.opsPortName" -}}
{{- if .Values.opsPort }}ops{{ else }}http{{ end }}
{{- end }}
