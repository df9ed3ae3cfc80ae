{{/* Refuses values that contradict each other, so that no pod fails to start because of them. */}}

{{- define "kvdepot.check" -}}
{{- $settings := .Values.settings -}}
{{- $faults := list -}}
{{- $gpu := ne .Values.gpu.mode "none" -}}
{{- if and $gpu (not .Values.hostAccess.hostPID) -}}
{{- $faults = append $faults "gpu.mode: CUDA opens an engine's memory only within one PID namespace; set hostAccess.hostPID: true" -}}
{{- end -}}
{{- if and $gpu (not .Values.hostAccess.unixSocket) (not .Values.tls.clientCASecretName) (not $settings.cuda_over_tcp) -}}
{{- $faults = append $faults "gpu.mode: CUDA handles need a client that the depot can identify; set hostAccess.unixSocket: true, tls.clientCASecretName, or settings.cuda_over_tcp: true" -}}
{{- end -}}
{{- if and (eq .Values.gpu.mode "dra") (not (include "kvdepot.draVersion" .)) -}}
{{- $faults = append $faults "gpu.mode: dra needs resource.k8s.io/v1 or v1beta2, which this cluster does not serve (Kubernetes 1.33)" -}}
{{- end -}}
{{- if and (eq .Values.kind "Deployment") .Values.hostAccess.unixSocket (gt (int .Values.replicas) 1) -}}
{{- $faults = append $faults "hostAccess.unixSocket: replicas on one node would take the socket from each other; use kind: DaemonSet, or replicas: 1" -}}
{{- end -}}
{{- if and .Values.tls.clientCASecretName (not .Values.tls.secretName) -}}
{{- $faults = append $faults "tls.clientCASecretName: client certificates need TLS; set tls.secretName too" -}}
{{- end -}}
{{- if and .Values.tenants.secretName (not .Values.tls.secretName) (not .Values.hostAccess.unixSocket) (not $settings.tokens_over_plain_tcp) -}}
{{- $faults = append $faults "tenants.secretName: no client could send its credentials; set tls.secretName, hostAccess.unixSocket: true, or settings.tokens_over_plain_tcp: true" -}}
{{- end -}}
{{- if and $settings.enable_tracing (not $settings.otlp_endpoint) (not $settings.trace_console) -}}
{{- $faults = append $faults "settings.enable_tracing: spans have no destination; set settings.otlp_endpoint or settings.trace_console too" -}}
{{- end -}}
{{- if eq (int .Values.service.port) (int .Values.metrics.port) -}}
{{- $faults = append $faults "metrics.port: it equals service.port; each needs its own port" -}}
{{- end -}}
{{- with dig "limits" "memory" "" .Values.resources -}}
{{- if and (ne (default "" $settings.l1_huge_pages) "reserved") (le (include "kvdepot.bytes" . | int64) (include "kvdepot.bytes" $settings.l1_size | int64)) -}}
{{- $faults = append $faults (printf "resources.limits.memory: %v is too small for settings.l1_size, %v, and the rest of the process" . $settings.l1_size) -}}
{{- end -}}
{{- end -}}
{{- if $faults -}}
{{- fail (printf "\n%s" (join "\n" $faults)) -}}
{{- end -}}
{{- end }}
