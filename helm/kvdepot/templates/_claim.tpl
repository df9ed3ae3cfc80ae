{{/* The claim of GPUs that the chart makes for each pod. */}}

{{- define "kvdepot.claim" -}}
spec:
  devices:
    requests:
      - name: gpus
        exactly:
          deviceClassName: {{ .Values.gpu.deviceClassName }}
          allocationMode: All
          {{- if .Values.gpu.adminAccess }}
          adminAccess: true
          {{- end }}
{{- end }}

{{/* The name of the template. It contains a hash of the claim: a template is immutable, so another claim needs another name. */}}
{{- define "kvdepot.claimTemplateName" -}}
{{- include "kvdepot.named" (list . (include "kvdepot.claim" . | sha256sum | trunc 8)) }}
{{- end }}

{{/* The newest version of the API that the cluster serves. Empty: none. */}}
{{- define "kvdepot.draVersion" -}}
{{- if .Capabilities.APIVersions.Has "resource.k8s.io/v1" }}resource.k8s.io/v1
{{- else if .Capabilities.APIVersions.Has "resource.k8s.io/v1beta2" }}resource.k8s.io/v1beta2
{{- end }}
{{- end }}
