{{/* Values that are each right and don't go together: refused here, rather than by a pod that does not start. */}}

{{- define "kvdepot.check" -}}
{{- $settings := .Values.settings -}}
{{- $faults := list -}}
{{- $gpu := ne .Values.gpu.mode "none" -}}
{{- if and $gpu (not .Values.hostAccess.hostPID) -}}
{{- $faults = append $faults "gpu.mode: CUDA opens an engine's memory only within one PID namespace; set hostAccess.hostPID: true" -}}
{{- end -}}
{{- if and $gpu (not .Values.hostAccess.unixSocket) (not .Values.tls.clientCASecretName) (not $settings.cuda_over_tcp) -}}
{{- $faults = append $faults "gpu.mode: CUDA handles are taken from clients that are known; set hostAccess.unixSocket: true, tls.clientCASecretName, or settings.cuda_over_tcp: true" -}}
{{- end -}}
{{- if and (eq .Values.gpu.mode "dra") (not (include "kvdepot.draVersion" .)) -}}
{{- $faults = append $faults "gpu.mode: dra needs resource.k8s.io/v1 or v1beta2, which this cluster does not serve (Kubernetes 1.33)" -}}
{{- end -}}
{{- if and (eq .Values.kind "Deployment") .Values.hostAccess.unixSocket (gt (int .Values.replicas) 1) -}}
{{- $faults = append $faults "hostAccess.unixSocket: replicas on one node would take the socket from each other; use kind: DaemonSet, or replicas: 1" -}}
{{- end -}}
{{- if and .Values.tls.clientCASecretName (not .Values.tls.secretName) -}}
{{- $faults = append $faults "tls.clientCASecretName: clients show certificates over TLS only; set tls.secretName too" -}}
{{- end -}}
{{- if and .Values.tenants.secretName (not .Values.tls.secretName) (not .Values.hostAccess.unixSocket) (not $settings.tokens_over_plain_tcp) -}}
{{- $faults = append $faults "tenants.secretName: nobody can show who they are; set tls.secretName, hostAccess.unixSocket: true, or settings.tokens_over_plain_tcp: true" -}}
{{- end -}}
{{- if and $settings.enable_tracing (not $settings.otlp_endpoint) (not $settings.trace_console) -}}
{{- $faults = append $faults "settings.enable_tracing: spans go nowhere; set settings.otlp_endpoint or settings.trace_console too" -}}
{{- end -}}
{{- if eq (int .Values.service.port) (int .Values.metrics.port) -}}
{{- $faults = append $faults "metrics.port: it is service.port; each needs its own" -}}
{{- end -}}
{{- with dig "limits" "memory" "" .Values.resources -}}
{{- if and (ne (default "" $settings.l1_huge_pages) "reserved") (le (include "kvdepot.bytes" . | int64) (include "kvdepot.bytes" $settings.l1_size | int64)) -}}
{{- $faults = append $faults (printf "resources.limits.memory: %v can't hold settings.l1_size, %v, and what is beside it" . $settings.l1_size) -}}
{{- end -}}
{{- end -}}
{{- if $faults -}}
{{- fail (printf "\n%s" (join "\n" $faults)) -}}
{{- end -}}
{{- end }}
