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
{{- if and .Values.hostAccess.unixSocket (ne "0" (toString (dig "rollingUpdate" "maxSurge" 0 .Values.updateStrategy))) -}}
{{- $faults = append $faults "updateStrategy.rollingUpdate.maxSurge: a second depot next to the old one would take the socket from it; use 0" -}}
{{- end -}}
{{- if and .Values.l1.file.enabled (ne .Values.kind "DaemonSet") -}}
{{- $faults = append $faults "l1.file.enabled: a pod of a Deployment may start before the old one has ended, or on a node without its file; use kind: DaemonSet" -}}
{{- end -}}
{{- if and .Values.l1.file.enabled (ne "0" (toString (dig "rollingUpdate" "maxSurge" 0 .Values.updateStrategy))) -}}
{{- $faults = append $faults "updateStrategy.rollingUpdate.maxSurge: a second depot next to the old one can't use the file of L1; use 0" -}}
{{- end -}}
{{- if and .Values.l1.file.enabled (hasPrefix "/dev/hugepages" .Values.l1.file.folder) (ne (default "" $settings.l1_huge_pages) "reserved") -}}
{{- $faults = append $faults "l1.file.folder: the pod may use huge pages only if it requests them; set settings.l1_huge_pages: reserved" -}}
{{- end -}}
{{- $faults = concat $faults (include "kvdepot.tierFaults" . | fromJsonArray) -}}
{{- $grace := .Values.terminationGracePeriodSeconds -}}
{{- if and (not (kindIs "invalid" $grace)) (lt (int $grace) (include "kvdepot.drainSeconds" . | int)) -}}
{{- $faults = append $faults (printf "terminationGracePeriodSeconds: %d is too short; the depot needs settings.drain_timeout, %v, and 10 seconds more, or the kubelet kills it while it drains" (int $grace) $settings.drain_timeout) -}}
{{- end -}}
{{- $other := ternary "OnDelete" "Recreate" (eq .Values.kind "Deployment") -}}
{{- if eq $other (default "" .Values.updateStrategy.type) -}}
{{- $faults = append $faults (printf "updateStrategy.type: a %s has no %s" .Values.kind $other) -}}
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
{{- if and (ne .Values.metrics.serviceMonitor "never") (ne .Values.metrics.podMonitor "never") -}}
{{- $faults = append $faults "metrics.podMonitor: with a ServiceMonitor, Prometheus would scrape each depot twice; set metrics.serviceMonitor: never" -}}
{{- end -}}
{{- if or (hasKey .Values.metrics.endpoint "port") (hasKey .Values.metrics.endpoint "targetPort") -}}
{{- $faults = append $faults "metrics.endpoint: the chart sets the port itself; use metrics.port" -}}
{{- end -}}
{{- range .Values.extraArgs -}}
{{- $flag := regexFind "^--(l1-size|l1-huge-pages|drain-timeout|disable-metrics|disable-observability|otlp-endpoint)\\b" . -}}
{{- if $flag -}}
{{- $faults = append $faults (printf "extraArgs: %s: other objects follow from it; set settings.%s" $flag (trimPrefix "--" $flag | replace "-" "_")) -}}
{{- else if regexMatch "^--(config|listen|l1-file|l2(=|$)|unix-socket-|tls-|tenants|prometheus-|kv-events(=|$)|kv-events-replay(=|$))" . -}}
{{- $faults = append $faults (printf "extraArgs: %s: the chart sets this itself" .) -}}
{{- end -}}
{{- end -}}
{{- range .Values.extraEnv -}}
{{- if has .name (list "KVDEPOT_LISTEN" "KVDEPOT_PROMETHEUS_HOST") -}}
{{- $faults = append $faults (printf "extraEnv: the chart sets %s itself, from service.bindAddress and service.port" .name) -}}
{{- else if eq .name "KVDEPOT_L2" -}}
{{- $faults = append $faults "extraEnv: volumes and other objects follow from KVDEPOT_L2; use the value l2" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.kvEvents.enabled .Values.networkPolicy.enabled (not .Values.networkPolicy.routers) -}}
{{- $faults = append $faults "networkPolicy.routers: no router could read KV events, which have the tokens of prompts; name those that may" -}}
{{- end -}}
{{- if and .Values.kvEvents.enabled $settings.disable_observability -}}
{{- $faults = append $faults "kvEvents.enabled: settings.disable_observability leaves no events to publish" -}}
{{- end -}}
{{- if and .Values.kvEvents.enabled (ne 4 (list .Values.service.port .Values.metrics.port .Values.kvEvents.port .Values.kvEvents.replayPort | uniq | len)) -}}
{{- $faults = append $faults "kvEvents.port: service.port, metrics.port, kvEvents.port and kvEvents.replayPort have to differ" -}}
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
