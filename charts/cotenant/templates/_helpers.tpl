{{- define "cotenant.name" -}}{{ default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}{{- end -}}

{{- define "cotenant.namespace" -}}{{ default .Release.Namespace .Values.namespaceOverride }}{{- end -}}

{{- define "cotenant.agentNamespace" -}}{{ default (include "cotenant.namespace" .) .Values.agent.namespace }}{{- end -}}

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

{{/* metadata with labels and annotations: (dict "root" $ "name" ... "namespace" ... "component" ...) */}}
{{- define "cotenant.metadata" -}}
name: {{ .name }}
{{- with .namespace }}
namespace: {{ . }}
{{- end }}
labels:
  {{- include "cotenant.labels" .root | nindent 2 }}
  {{- with .component }}
  app.kubernetes.io/component: {{ . }}
  {{- end }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (dict) (default (dict) .annotations) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "cotenant.selector" -}}
app.kubernetes.io/name: {{ include "cotenant.name" .root }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* an image reference: (dict "root" $ "image" .Values.x.image) */}}
{{- define "cotenant.image" -}}
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
