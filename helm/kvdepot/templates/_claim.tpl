{{/* The claim of GPUs that each pod has of its own. */}}

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

{{/* With a part that follows from the claim: a template can't be changed, so that another claim needs another one. */}}
{{- define "kvdepot.claimTemplateName" -}}
{{- include "kvdepot.named" (list . (include "kvdepot.claim" . | sha256sum | trunc 8)) }}
{{- end }}

{{/* The newest version of the API that the cluster serves; empty if there is none. */}}
{{- define "kvdepot.draVersion" -}}
{{- if .Capabilities.APIVersions.Has "resource.k8s.io/v1" }}resource.k8s.io/v1
{{- else if .Capabilities.APIVersions.Has "resource.k8s.io/v1beta2" }}resource.k8s.io/v1beta2
{{- end }}
{{- end }}
