{{- define "cotenant.name" -}}{{ default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}{{- end -}}

{{- define "cotenant.namespace" -}}{{ default .Release.Namespace .Values.namespaceOverride }}{{- end -}}

{{/* where the agents and their heartbeats are; the controller's own namespace where the chart runs none */}}
{{- define "cotenant.agentNamespace" -}}
{{- if .Values.agent.enabled -}}
{{ default (include "cotenant.namespace" .) .Values.agent.namespace }}
{{- else -}}
{{ include "cotenant.namespace" . }}
{{- end -}}
{{- end -}}

{{- define "cotenant.labels" -}}
app.kubernetes.io/name: {{ include "cotenant.name" . }}
app.kubernetes.io/part-of: cotenant
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* metadata with labels and annotations, each key once: (dict "root" $ "name" ... "namespace" ... "component" ...) */}}
{{- define "cotenant.metadata" -}}
name: {{ .name }}
{{- with .namespace }}
namespace: {{ . }}
{{- end }}
labels:
  {{- $component := empty .component | ternary (dict) (dict "app.kubernetes.io/component" .component) }}
  {{- merge (dict) (default (dict) .labels) $component (include "cotenant.labels" .root | fromYaml) | toYaml | nindent 2 }}
{{- with merge (dict) (default (dict) .annotations) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* metadata of a pod template: (dict "root" $ "component" ... "values" .Values.x "annotations" (dict)) */}}
{{- define "cotenant.podMetadata" -}}
labels:
  {{- merge (dict "app.kubernetes.io/component" .component) .values.podLabels (include "cotenant.labels" .root | fromYaml) | toYaml | nindent 2 }}
annotations:
  {{- merge (dict) .values.podAnnotations .annotations | toYaml | nindent 2 }}
{{- end -}}

{{- define "cotenant.selector" -}}
app.kubernetes.io/name: {{ include "cotenant.name" .root }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* Each variable once, as a container's env: (dict "ours" name->entry "theirs" name->value "extra" list). Theirs win, the list
most of all; an empty value is left out: what the API server gives back then equals what was applied. */}}
{{- define "cotenant.env" -}}
{{- $all := .ours }}
{{- range $name, $value := .theirs }}{{- $all = set $all $name (dict "value" $value) }}{{- end }}
{{- range .extra }}{{- $all = omit $all .name }}{{- end }}
{{- $list := list }}
{{- range $name, $entry := $all }}
{{- if $entry.valueFrom }}
{{- $list = append $list (dict "name" $name "valueFrom" $entry.valueFrom) }}
{{- else if ne (toString $entry.value) "" }}
{{- $list = append $list (dict "name" $name "value" (toString $entry.value)) }}
{{- end }}
{{- end }}
{{- concat $list (default (list) .extra) | toYaml }}
{{- end -}}

{{/* an image reference: (dict "root" $ "image" .Values.x.image) */}}
{{- define "cotenant.image" -}}
{{- if not .image.repository }}
{{- fail "controller.image.repository is not set: no registry carries Cotenant's images yet. Build images/operator/Dockerfile, push it to a registry of yours, and set controller.image.repository to its name (docs/install.md, Images)" }}
{{- end -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ default .root.Chart.AppVersion .image.tag }}
{{- end -}}
{{- end -}}

{{- define "cotenant.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* rights that the controller needs in each namespace it serves */}}
{{- define "cotenant.servedRules" -}}
- apiGroups: [cotenant.dev]
  resources: [modelplacements]
  verbs: [get, list, watch]
- apiGroups: [cotenant.dev]
  resources: [modelplacements/status]
  verbs: [patch]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, create, delete]
- apiGroups: [""]
  resources: [pods/log]
  verbs: [get]
- apiGroups: [""]
  resources: [services]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end -}}
