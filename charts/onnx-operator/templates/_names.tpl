{{/* Names, labels and images. */}}

{{- define "onnx-operator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* Short enough for the longest suffix that is put behind it. */}}
{{- define "onnx-operator.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 45 | trimSuffix "-" }}
{{- else if contains (include "onnx-operator.name" .) .Release.Name }}
{{- .Release.Name | trunc 45 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "onnx-operator.name" .) | trunc 45 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "onnx-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ include "onnx-operator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "onnx-operator.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "onnx-operator.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "onnx-operator.username" -}}
system:serviceaccount:{{ .Release.Namespace }}:{{ include "onnx-operator.fullname" . }}
{{- end }}

{{/* An image's reference. Takes (dict "root" $ "name" "operator"). */}}
{{- define "onnx-operator.image" -}}
{{- $image := index .root.Values.images .name }}
{{- $registry := $image.registry | default .root.Values.images.registry }}
{{- if not $registry }}
{{- fail (printf "images.registry is not set: build the images and push them to a registry that your cluster can pull from (README, \"Install on your cluster\"), then name it: --set images.registry=registry.example.com (or images.%s.registry)" .name) }}
{{- end }}
{{- $tail := ternary (printf "@%s" $image.digest) (printf ":%s" ($image.tag | default .root.Chart.AppVersion)) (not (empty $image.digest)) }}
{{- printf "%s/%s%s" $registry $image.repository $tail }}
{{- end }}

{{/* Where the policies bind: where this release's operator serves. */}}
{{- define "onnx-operator.watchedNamespaces" -}}
{{- if .Values.watchNamespaces -}}
# Elsewhere another release may serve.
matchResources:
  namespaceSelector:
    matchExpressions:
    - {key: kubernetes.io/metadata.name, operator: In, values: {{ .Values.watchNamespaces | toJson }}}
{{- end }}
{{- end }}
