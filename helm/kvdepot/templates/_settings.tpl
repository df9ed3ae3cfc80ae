{{/* The settings of the server, and what the pod needs for them. */}}

{{- define "kvdepot.socketFolder" -}}/run/kvdepot{{- end }}
{{- define "kvdepot.socket" -}}unix:{{ include "kvdepot.socketFolder" . }}/kvdepot.sock{{- end }}

{{/* The folder of L1's file, in the container. */}}
{{- define "kvdepot.l1Folder" -}}/var/lib/kvdepot/l1{{- end }}

{{/* The addresses that the depot listens on, as a JSON array. */}}
{{- define "kvdepot.listen" -}}
{{- $host := .Values.service.bindAddress -}}
{{- $tcp := printf "%s:%d" (ternary (printf "[%s]" $host) $host (contains ":" $host)) (int .Values.service.port) -}}
{{- list $tcp (include "kvdepot.socket" .) | toJson }}
{{- end }}

{{/* HOST:PORT of the Service. */}}
{{- define "kvdepot.address" -}}
{{- printf "%s.%s.svc:%v" (include "kvdepot.fullname" .) .Release.Namespace (int .Values.service.port) }}
{{- end }}

{{/* Whether the depot serves metrics for Prometheus. Empty: no. */}}
{{- define "kvdepot.servesMetrics" -}}
{{- $settings := .Values.settings -}}
{{- if not (or $settings.disable_metrics $settings.disable_observability $settings.otlp_endpoint) }}yes{{ end }}
{{- end }}

{{/* The settings file. It is JSON, because toYaml writes large integers as 1e+06. */}}
{{- define "kvdepot.config" -}}
{{- $host := .Values.service.bindAddress -}}
{{- $settings := deepCopy .Values.settings -}}
{{- $_ := set $settings "listen" (include "kvdepot.listen" . | fromJsonArray) -}}
{{- $_ := set $settings "unix_socket_mode" .Values.unixSocketMode -}}
{{- $_ := set $settings "unix_socket_owner" .Values.unixSocketOwner -}}
{{- $_ := set $settings "prometheus_host" $host -}}
{{- $_ := set $settings "prometheus_port" (int .Values.metrics.port) -}}
{{- if .Values.kvEvents.enabled -}}
{{- $everywhere := printf "tcp://%s:" (ternary (printf "[%s]" $host) $host (contains ":" $host)) -}}
{{- $_ := set $settings "kv_events" (printf "%s%d" $everywhere (int .Values.kvEvents.port)) -}}
{{- $_ := set $settings "kv_events_replay" (printf "%s%d" $everywhere (int .Values.kvEvents.replayPort)) -}}
{{- end -}}
{{- if .Values.l1.file.enabled -}}
{{- $_ := set $settings "l1_file" (printf "%s/l1" (include "kvdepot.l1Folder" .)) -}}
{{- end -}}
{{- with .Values.l2 -}}
{{- $urls := list -}}
{{- range . -}}
{{- $urls = append $urls .url -}}
{{- end -}}
{{- $_ := set $settings "l2" $urls -}}
{{- end -}}
{{- if .Values.tls.secretName -}}
{{- $_ := set $settings "tls_cert" "/etc/kvdepot/tls/tls.crt" -}}
{{- $_ := set $settings "tls_key" "/etc/kvdepot/tls/tls.key" -}}
{{- end -}}
{{- if .Values.tls.clientCASecretName -}}
{{- $_ := set $settings "tls_client_ca" "/etc/kvdepot/client-ca/ca.crt" -}}
{{- end -}}
{{- if .Values.tenants.secretName -}}
{{- $_ := set $settings "tenants" (printf "/etc/kvdepot/tenants/%s" .Values.tenants.key) -}}
{{- end -}}
{{- range $name := keys $settings | sortAlpha }}
{{ $name }}: {{ get $settings $name | toJson }}
{{- end }}
{{- end }}

{{/* The bytes of a size in the settings' format, such as 8GiB, 500MB or 4096. */}}
{{- define "kvdepot.bytes" -}}
{{- $text := ternary (printf "%.0f" (float64 .)) (toString .) (kindIs "float64" .) | lower | nospace -}}
{{- $number := regexFind "^[0-9]+(\\.[0-9]+)?" $text -}}
{{- $unit := trimPrefix $number $text | trimSuffix "b" -}}
{{- $factors := dict "" 1 "k" 1e3 "m" 1e6 "g" 1e9 "t" 1e12 "ki" 1024 "mi" 1048576 "gi" 1073741824 "ti" 1099511627776 -}}
{{- if or (not $number) (not (hasKey $factors $unit)) -}}
{{- fail (printf "%v is not a size like 8GiB, 500MB or 4096" .) -}}
{{- end -}}
{{- printf "%.0f" (floor (mulf $number (get $factors $unit))) }}
{{- end }}

{{/* The seconds, rounded up, of a duration in the settings' format, such as 60s, 5m or 250ms. */}}
{{- define "kvdepot.seconds" -}}
{{- $text := toString . | lower | nospace -}}
{{- $number := regexFind "^[0-9]+(\\.[0-9]+)?" $text -}}
{{- $unit := trimPrefix $number $text -}}
{{- $factors := dict "" 1 "ms" 0.001 "s" 1 "m" 60 "min" 60 "h" 3600 "d" 86400 -}}
{{- if or (not $number) (not (hasKey $factors $unit)) -}}
{{- fail (printf "%v is not a duration like 60s, 5m or 250ms" .) -}}
{{- end -}}
{{- printf "%.0f" (ceil (mulf $number (get $factors $unit))) }}
{{- end }}

{{/* The longest time that a depot needs to end: it ends ten seconds after the drain, even if something hangs. */}}
{{- define "kvdepot.drainSeconds" -}}
{{- include "kvdepot.seconds" .Values.settings.drain_timeout | int | add 10 }}
{{- end }}

{{/* The longest time that a start may take. The first one with a file makes the pages of L1. */}}
{{- define "kvdepot.startupSeconds" -}}
{{- $pages := ternary (include "kvdepot.bytes" .Values.settings.l1_size | int64 | mul 2) 0 .Values.l1.file.enabled -}}
{{- add (int .Values.probes.startupSeconds) (div (add $pages 1073741823) 1073741824) }}
{{- end }}

{{/* Bytes as a Kubernetes quantity. */}}
{{- define "kvdepot.quantity" -}}
{{- if mod . 1048576 }}{{ . }}{{ else if mod . 1073741824 }}{{ div . 1048576 }}Mi{{ else }}{{ div . 1073741824 }}Gi{{ end }}
{{- end }}

{{/* The bytes of the tables in front of L1, in whole huge pages: service/l1/format.py. */}}
{{- define "kvdepot.l1TableBytes" -}}
{{- $records := min (div (add . 4095) 4096) (max 16384 (div . 65536)) -}}
{{- $tables := add 4096 (mul 256 (max 64 (div $records 4))) (mul 128 $records) -}}
{{- mul 2097152 (div (add $tables 2097151) 2097152) }}
{{- end }}

{{/* Requests and limits of the container. */}}
{{- define "kvdepot.resources" -}}
{{- $l1 := include "kvdepot.bytes" .Values.settings.l1_size | int64 -}}
{{- $rest := include "kvdepot.bytes" .Values.memoryBesideL1 | int64 | add (include "kvdepot.tierBytes" . | int64) -}}
{{- $reserved := eq (default "" .Values.settings.l1_huge_pages) "reserved" -}}
{{- $resources := deepCopy .Values.resources -}}
{{- if not $resources -}}
{{- $amounts := dict "cpu" (toString .Values.cpus) "memory" (include "kvdepot.quantity" (ternary $rest (add $l1 $rest) $reserved)) -}}
{{- if $reserved -}}
{{- $_ := set $amounts "hugepages-2Mi" (printf "%dMi" (mul 2 (div (add (include "kvdepot.l1TableBytes" $l1 | int64) $l1 2097151) 2097152))) -}}
{{- end -}}
{{- $resources = dict "requests" $amounts "limits" (deepCopy $amounts) -}}
{{- end -}}
{{- if eq .Values.gpu.mode "devicePlugin" -}}
{{- range $side := list "requests" "limits" -}}
{{- $_ := set $resources $side (set (default dict (get $resources $side)) $.Values.gpu.resourceName (int $.Values.gpu.count)) -}}
{{- end -}}
{{- else if eq .Values.gpu.mode "dra" -}}
{{- $_ := set $resources "claims" (list (dict "name" "gpus")) -}}
{{- end -}}
{{ toYaml $resources }}
{{- end }}
