{{/* The tiers behind L1: their volumes, Secrets, ports, and values that contradict each other. */}}

{{/* The value of an option in the address of a tier: (list "disk:///d?size=1GiB" "size"). Empty: there is none. */}}
{{- define "kvdepot.tierOption" -}}
{{- $query := printf "&%s" (last (splitList "?" (first .))) -}}
{{- $found := regexFind (printf "&%s=[^&#]*" (last .)) $query -}}
{{- regexReplaceAll "(?i)%2f" (regexReplaceAll "(?i)%3a" (trimPrefix (printf "&%s=" (last .)) $found) ":") "/" }}
{{- end }}

{{/* The folder that a disk tier's folder is in: the volume is mounted there. */}}
{{- define "kvdepot.tierFolder" -}}
{{- regexReplaceAll "/[^/]+/*$" (trimPrefix "disk://" (first (splitList "?" .url))) "" }}
{{- end }}

{{/* The names of all Secrets of tiers, each once, as a JSON array. */}}
{{- define "kvdepot.tierSecrets" -}}
{{- $names := list -}}
{{- range .Values.l2 -}}
{{- $names = concat $names (default list .secrets) -}}
{{- end -}}
{{- $names | uniq | toJson }}
{{- end }}

{{/* The TCP ports of the tiers' servers, each once, as a JSON array. */}}
{{- define "kvdepot.tierPorts" -}}
{{- $usual := dict "valkey" "6379" "valkeys" "6379" "redis" "6379" "rediss" "6379" "mooncake" "50051" "https" "443" "http" "80" -}}
{{- $ports := list -}}
{{- range .Values.l2 -}}
{{- $kind := first (splitList ":" .url) -}}
{{- if ne $kind "disk" -}}
{{- $server := .url -}}
{{- if eq $kind "s3" -}}
{{- $server = default "https://aws" (include "kvdepot.tierOption" (list .url "endpoint")) -}}
{{- end -}}
{{- $host := first (splitList "?" $server) | regexFind "//[^/]*" -}}
{{- $port := regexFind ":[0-9]+$" $host | trimPrefix ":" -}}
{{- $ports = append $ports (default (get $usual (first (splitList ":" $server))) $port | int) -}}
{{- end -}}
{{- end -}}
{{- $ports | uniq | toJson }}
{{- end }}

{{/* Whether a tier is a Mooncake store, whose nodes exchange chunks with each other. Empty: none is. */}}
{{- define "kvdepot.hasMooncake" -}}
{{- range .Values.l2 -}}
{{- if hasPrefix "mooncake://" .url }}yes{{ end -}}
{{- end -}}
{{- end }}

{{/* The bytes that tiers take beside L1: 320 MiB for the I/O workers of each, and what it lends to Mooncake. */}}
{{- define "kvdepot.tierBytes" -}}
{{- $bytes := 0 -}}
{{- range .Values.l2 -}}
{{- $bytes = add $bytes 335544320 -}}
{{- with include "kvdepot.tierOption" (list .url "segment") -}}
{{- $bytes = add $bytes (include "kvdepot.bytes" . | int64) -}}
{{- end -}}
{{- end -}}
{{- $bytes }}
{{- end }}

{{/* The folders of nodes that init containers give to the pod's user, as a JSON array of [volume, path]. */}}
{{- define "kvdepot.tierFoldersToPrepare" -}}
{{- $folders := list -}}
{{- range $index, $tier := .Values.l2 -}}
{{- if and (dig "volume" "hostPath" "" $tier) (dig "prepareFolder" true $tier) -}}
{{- $folders = append $folders (list (printf "l2-%d" $index) (include "kvdepot.tierFolder" $tier)) -}}
{{- end -}}
{{- end -}}
{{- $folders | toJson }}
{{- end }}

{{- define "kvdepot.tierMounts" -}}
{{- range $index, $tier := .Values.l2 }}
{{- if $tier.volume }}
- {name: l2-{{ $index }}, mountPath: {{ include "kvdepot.tierFolder" $tier }}}
{{- end }}
{{- end }}
{{- range $index, $name := include "kvdepot.tierSecrets" . | fromJsonArray }}
- {name: l2-secret-{{ $index }}, mountPath: /etc/kvdepot/l2/{{ $name }}, readOnly: true}
{{- end }}
{{- end }}

{{- define "kvdepot.tierVolumes" -}}
{{- range $index, $tier := .Values.l2 }}
{{- with $tier.volume }}
- name: l2-{{ $index }}
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- range $index, $name := include "kvdepot.tierSecrets" . | fromJsonArray }}
- name: l2-secret-{{ $index }}
  secret: {secretName: {{ $name }}, defaultMode: 0440}
{{- end }}
{{- end }}

{{/* What is wrong with the tiers, as a JSON array. */}}
{{- define "kvdepot.tierFaults" -}}
{{- $faults := list -}}
{{- $folders := list -}}
{{- $several := or (eq .Values.kind "DaemonSet") (gt (int .Values.replicas) 1) -}}
{{- $secrets := include "kvdepot.tierSecrets" . | fromJsonArray -}}
{{- range $index, $tier := .Values.l2 -}}
{{- $where := printf "l2[%d]" $index -}}
{{- $volume := default dict $tier.volume -}}
{{- if not (hasPrefix "disk://" $tier.url) -}}
{{- if $volume -}}
{{- $faults = append $faults (printf "%s.volume: only a disk:// tier has a volume" $where) -}}
{{- end -}}
{{- else -}}
{{- $folder := include "kvdepot.tierFolder" $tier -}}
{{- $size := include "kvdepot.tierOption" (list $tier.url "size") -}}
{{- if not $volume -}}
{{- $faults = append $faults (printf "%s.volume: the container's own file system is read-only; give a hostPath, an emptyDir or another volume" $where) -}}
{{- else if or (eq $folder "") (regexMatch "^/(dev|etc|proc|run|sys|tmp|usr|var/cache|var/lib/kvdepot/l1)(/|$)" $folder) -}}
{{- $faults = append $faults (printf "%s.url: the volume would be mounted at %s, which the container needs for itself; write disk:///data/l2 or the like" $where (default "/" $folder)) -}}
{{- else if has $folder $folders -}}
{{- $faults = append $faults (printf "%s.url: the volume of another tier is mounted at %s; write disk:///data1/l2 or the like" $where $folder) -}}
{{- end -}}
{{- $folders = append $folders $folder -}}
{{- if and $volume.persistentVolumeClaim $several -}}
{{- $faults = append $faults (printf "%s.volume.persistentVolumeClaim: all pods would share it, and only one depot can use it; use ephemeral.volumeClaimTemplate, hostPath or emptyDir" $where) -}}
{{- end -}}
{{- if and $volume.hostPath (eq $.Values.kind "Deployment") (gt (int $.Values.replicas) 1) -}}
{{- $faults = append $faults (printf "%s.volume.hostPath: replicas on one node would share it, and only one depot can use it; use kind: DaemonSet, or replicas: 1" $where) -}}
{{- end -}}
{{- with dig "emptyDir" "sizeLimit" "" $volume -}}
{{- if and $size (lt (include "kvdepot.bytes" . | int64) (include "kvdepot.bytes" $size | int64)) -}}
{{- $faults = append $faults (printf "%s.volume.emptyDir.sizeLimit: %v is below the size of the tier, %s: the kubelet would evict the pod" $where . $size) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range regexFindAll "_file=/etc/kvdepot/l2/[^/&]+" $tier.url -1 -}}
{{- $name := last (splitList "/" .) -}}
{{- if not (has $name $secrets) -}}
{{- $faults = append $faults (printf "%s.secrets: the address names a file of the Secret %s; add its name" $where $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $faults | toJson }}
{{- end }}
