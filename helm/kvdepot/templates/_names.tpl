{{/* Names and labels. */}}

{{- define "kvdepot.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "kvdepot.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains (include "kvdepot.name" .) .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "kvdepot.name" .) | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* The full name with a suffix, 63 characters at most: (list . "metrics"). */}}
{{- define "kvdepot.named" -}}
{{- $suffix := last . -}}
{{- printf "%s-%s" (include "kvdepot.fullname" (first .) | trunc (int (sub 62 (len $suffix))) | trimSuffix "-") $suffix }}
{{- end }}

{{- define "kvdepot.selectorLabels" -}}
app.kubernetes.io/name: {{ include "kvdepot.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "kvdepot.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "kvdepot.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "kvdepot.serviceAccountName" -}}
{{- default (ternary (include "kvdepot.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name }}
{{- end }}

{{/* The image. A registry in image.repository gives way to global.imageRegistry. */}}
{{- define "kvdepot.image" -}}
{{- $repository := .Values.image.repository -}}
{{- with .Values.global.imageRegistry -}}
{{- $repository = printf "%s/%s" (trimSuffix "/" .) (regexReplaceAll "^([^/]*[.:][^/]*|localhost)/" $repository "") -}}
{{- end -}}
{{- $variant := ternary "" "-cuda" (eq .Values.gpu.mode "none") -}}
{{- $tag := default (printf "%s%s" .Chart.AppVersion $variant) .Values.image.tag -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" $repository .Values.image.digest }}
{{- else -}}
{{- printf "%s:%s" $repository $tag }}
{{- end }}
{{- end }}

{{/* The field imagePullSecrets of a pod. Those of `global` are names, or objects such as {name: registry}. */}}
{{- define "kvdepot.imagePullSecrets" -}}
{{- $secrets := list -}}
{{- range concat (default list .Values.global.imagePullSecrets) .Values.image.pullSecrets -}}
{{- $secrets = append $secrets (kindIs "map" . | ternary . (dict "name" .)) -}}
{{- end -}}
{{- with uniq $secrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Whether the chart makes an object of the Prometheus operator: (list . "auto" "ServiceMonitor"). Empty: no. */}}
{{- define "kvdepot.operatorObject" -}}
{{- $root := index . 0 -}}{{- $when := index . 1 -}}{{- $kind := index . 2 -}}
{{- $there := $root.Capabilities.APIVersions.Has (printf "monitoring.coreos.com/v1/%s" $kind) -}}
{{- if or (eq $when "always") (and (eq $when "auto") $there) }}yes{{ end }}
{{- end }}
