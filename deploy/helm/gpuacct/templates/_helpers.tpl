{{- define "gpuacct.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "gpuacct.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 59 | trimSuffix "-" }}
{{- else if contains (include "gpuacct.name" .) .Release.Name }}
{{- .Release.Name | trunc 59 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "gpuacct.name" .) | trunc 59 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Labels by which an object is found. They never change: a DaemonSet's selector cannot. */}}
{{- define "gpuacct.selectorLabels" -}}
app.kubernetes.io/name: {{ include "gpuacct.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "gpuacct.labels" -}}
{{ include "gpuacct.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "gpuacct.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "gpuacct.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "gpuacct.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}
{{- end }}

{{- define "gpuacct.tlsSecretName" -}}
{{- default (printf "%s-tls" (include "gpuacct.fullname" .)) .Values.tls.secretName }}
{{- end }}

{{/* Whether /metrics is protected by TLS. A web configuration file of one's own is taken to have it. */}}
{{- define "gpuacct.isHttps" -}}
{{- if or .Values.tls.enabled .Values.webConfig.secretName }}true{{ end }}
{{- end }}

{{/* What each node must say of itself, whichever other terms there are. */}}
{{- define "gpuacct.clientExpression" -}}
- key: nvidia.com/gpu.deploy.client
  operator: NotIn
  values: ["false", "paused-for-driver-upgrade"]
{{- end }}

{{- define "gpuacct.configuration" -}}
{{- if .Values.config }}
{{- .Values.config }}
{{- else }}
{{- .Files.Get "files/gpuacct.toml" }}
{{- end }}
{{- if .Values.records.enabled }}

[records]
enabled = true
{{- with .Values.records.endpoint }}
endpoint = {{ . | toJson }}
{{- end }}
{{- end }}
{{- with .Values.extraConfig }}

{{ . }}
{{- end }}
{{- end }}

{{/* How the operator's kinds see a target. */}}
{{- define "gpuacct.relabelings" -}}
# The target is the node, not the pod: its series must survive a replaced pod of the agent.
- sourceLabels: [__meta_kubernetes_pod_node_name]
  targetLabel: node
- sourceLabels: [__meta_kubernetes_pod_node_name]
  targetLabel: instance
# The operator adds labels with the agent's own pod under the same names. On GPU metrics they
# would look as if the agent had used the GPU.
- regex: namespace|pod|container
  action: labeldrop
{{- end }}
