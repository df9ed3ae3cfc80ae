{{/* The pod: the same for a DaemonSet and a Deployment. */}}

{{- define "kvdepot.pod" -}}
{{- $gpu := .Values.gpu -}}
serviceAccountName: {{ include "kvdepot.serviceAccountName" . }}
automountServiceAccountToken: false
# Off: variables of a Service named kvdepot, such as KVDEPOT_PORT, look like settings.
enableServiceLinks: false
{{- if .Values.hostAccess.hostPID }}
hostPID: true
{{- end }}
terminationGracePeriodSeconds: {{ default (include "kvdepot.drainSeconds" .) .Values.terminationGracePeriodSeconds }}
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- include "kvdepot.imagePullSecrets" . }}
{{- with .Values.dnsPolicy }}
dnsPolicy: {{ . }}
{{- end }}
{{- with .Values.dnsConfig }}
dnsConfig:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- if and (has $gpu.mode (list "runtimeClass" "devicePlugin")) $gpu.runtimeClassName }}
runtimeClassName: {{ $gpu.runtimeClassName }}
{{- end }}
{{- if eq $gpu.mode "dra" }}
resourceClaims:
  - name: gpus
    {{- if $gpu.claimName }}
    resourceClaimName: {{ $gpu.claimName }}
    {{- else }}
    resourceClaimTemplateName: {{ include "kvdepot.claimTemplateName" . }}
    {{- end }}
{{- end }}
{{- include "kvdepot.placement" . }}
{{- if and (eq .Values.kind "Deployment") .Values.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- toYaml .Values.topologySpreadConstraints | nindent 2 }}
{{- end }}
{{- $preparesSocket := and .Values.hostAccess.unixSocket .Values.hostAccess.prepareUnixSocketFolder }}
{{- $preparesL1 := and .Values.l1.file.enabled .Values.l1.file.prepareFolder }}
{{- $tierFolders := include "kvdepot.tierFoldersToPrepare" . | fromJsonArray }}
{{- if or $preparesSocket $preparesL1 $tierFolders .Values.extraInitContainers }}
initContainers:
  {{- if $preparesSocket }}
  {{- include "kvdepot.prepareFolder" (list . "socket" (include "kvdepot.socketFolder" .)) | nindent 2 }}
  {{- end }}
  {{- if $preparesL1 }}
  {{- include "kvdepot.prepareFolder" (list . "l1" (include "kvdepot.l1Folder" .)) | nindent 2 }}
  {{- end }}
  {{- range $tierFolders }}
  {{- include "kvdepot.prepareFolder" (list $ (first .) (last .)) | nindent 2 }}
  {{- end }}
  {{- with .Values.extraInitContainers }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
containers:
  - name: depot
    image: {{ include "kvdepot.image" . }}
    imagePullPolicy: {{ .Values.image.pullPolicy }}
    args:
      - serve
      - --config
      - /etc/kvdepot/settings/settings.yaml
      {{- range .Values.extraArgs }}
      - {{ . | quote }}
      {{- end }}
    env:
      # The image has these variables for `docker run`, and a variable overrides the file.
      - name: KVDEPOT_LISTEN
        value: {{ include "kvdepot.listen" . | fromJsonArray | join "," | quote }}
      - name: KVDEPOT_PROMETHEUS_HOST
        value: {{ .Values.service.bindAddress | quote }}
      - name: NODE_NAME
        valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
      - name: POD_NAME
        valueFrom: {fieldRef: {fieldPath: metadata.name}}
      - name: POD_NAMESPACE
        valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
      - name: OTEL_RESOURCE_ATTRIBUTES
        value: k8s.namespace.name=$(POD_NAMESPACE),k8s.node.name=$(NODE_NAME),k8s.pod.name=$(POD_NAME)
      {{- if eq $gpu.mode "runtimeClass" }}
      - name: NVIDIA_VISIBLE_DEVICES
        value: {{ $gpu.visibleDevices | quote }}
      - name: NVIDIA_DRIVER_CAPABILITIES
        value: compute,utility
      {{- end }}
      {{- with .Values.extraEnv }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    ports:
      - {name: grpc, containerPort: {{ .Values.service.port }}}
      {{- if include "kvdepot.servesMetrics" . }}
      - {name: metrics, containerPort: {{ .Values.metrics.port }}}
      {{- end }}
      {{- if .Values.kvEvents.enabled }}
      - {name: kv-events, containerPort: {{ .Values.kvEvents.port }}}
      - {name: kv-replay, containerPort: {{ .Values.kvEvents.replayPort }}}
      {{- end }}
    startupProbe:
      {{- include "kvdepot.probe" (list . "") | nindent 6 }}
      periodSeconds: 2
      timeoutSeconds: 5
      failureThreshold: {{ div (add (include "kvdepot.startupSeconds" . | int) 1) 2 }}
    livenessProbe:
      {{- include "kvdepot.probe" (list . "") | nindent 6 }}
      periodSeconds: {{ .Values.probes.periodSeconds }}
      timeoutSeconds: 5
      failureThreshold: {{ .Values.probes.failureThreshold }}
    readinessProbe:
      {{- include "kvdepot.probe" (list . "kvdepot.v1.CacheService") | nindent 6 }}
      periodSeconds: {{ .Values.probes.periodSeconds }}
      timeoutSeconds: 5
      failureThreshold: {{ .Values.probes.failureThreshold }}
    resources:
      {{- include "kvdepot.resources" . | nindent 6 }}
    securityContext:
      {{- toYaml .Values.securityContext | nindent 6 }}
    volumeMounts:
      - {name: settings, mountPath: /etc/kvdepot/settings, readOnly: true}
      - {name: socket, mountPath: {{ include "kvdepot.socketFolder" . }}}
      # CuPy and the CUDA driver keep compiled kernels here. Variables of the image name this folder.
      - {name: cache, mountPath: /var/cache/kvdepot}
      - {name: tmp, mountPath: /tmp}
      {{- if .Values.l1.file.enabled }}
      - {name: l1, mountPath: {{ include "kvdepot.l1Folder" . }}}
      {{- end }}
      {{- if .Values.hostAccess.sharedMemory }}
      - {name: shared-memory, mountPath: /dev/shm}
      {{- end }}
      {{- if .Values.tls.secretName }}
      - {name: tls, mountPath: /etc/kvdepot/tls, readOnly: true}
      {{- end }}
      {{- if .Values.tls.clientCASecretName }}
      - {name: client-ca, mountPath: /etc/kvdepot/client-ca, readOnly: true}
      {{- end }}
      {{- if .Values.tenants.secretName }}
      - {name: tenants, mountPath: /etc/kvdepot/tenants, readOnly: true}
      {{- end }}
      {{- with include "kvdepot.tierMounts" . }}
      {{- . | nindent 6 }}
      {{- end }}
      {{- with .Values.extraVolumeMounts }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
  {{- with .Values.extraContainers }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
volumes:
  - name: settings
    configMap:
      name: {{ include "kvdepot.fullname" . }}
  - name: socket
    {{- if .Values.hostAccess.unixSocket }}
    hostPath: {path: {{ .Values.hostAccess.unixSocketFolder }}, type: DirectoryOrCreate}
    {{- else }}
    emptyDir: {medium: Memory, sizeLimit: 1Mi}
    {{- end }}
  - name: cache
    emptyDir: {sizeLimit: 1Gi}
  - name: tmp
    emptyDir: {sizeLimit: 256Mi}
  {{- if .Values.l1.file.enabled }}
  - name: l1
    hostPath: {path: {{ .Values.l1.file.folder }}, type: DirectoryOrCreate}
  {{- end }}
  {{- if .Values.hostAccess.sharedMemory }}
  - name: shared-memory
    hostPath: {path: /dev/shm, type: Directory}
  {{- end }}
  # Secrets are readable for the pod's group. They are mounted whole, because a subPath mount is never updated.
  {{- if .Values.tls.secretName }}
  - name: tls
    secret: {secretName: {{ .Values.tls.secretName }}, defaultMode: 0440}
  {{- end }}
  {{- if .Values.tls.clientCASecretName }}
  - name: client-ca
    secret: {secretName: {{ .Values.tls.clientCASecretName }}, defaultMode: 0440, items: [{key: ca.crt, path: ca.crt}]}
  {{- end }}
  {{- if .Values.tenants.secretName }}
  - name: tenants
    secret: {secretName: {{ .Values.tenants.secretName }}, defaultMode: 0440, items: [{key: {{ .Values.tenants.key }}, path: {{ .Values.tenants.key }}}]}
  {{- end }}
  {{- with include "kvdepot.tierVolumes" . }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- with .Values.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{/* An init container that gives a folder of the node to the pod's user: (list . "socket" "/run/kvdepot"). */}}
{{- define "kvdepot.prepareFolder" -}}
{{- $root := first . -}}
{{- $volume := index . 1 -}}
{{- $context := $root.Values.podSecurityContext -}}
- name: {{ $volume }}-folder
  image: {{ include "kvdepot.image" $root }}
  imagePullPolicy: {{ $root.Values.image.pullPolicy }}
  command: [chown, {{ printf "%v:%v" (int $context.runAsUser) (int $context.runAsGroup) | quote }}, {{ last . }}]
  resources:
    requests: {cpu: 10m, memory: 16Mi}
    limits: {cpu: 10m, memory: 16Mi}
  securityContext:
    runAsNonRoot: false
    runAsUser: 0
    allowPrivilegeEscalation: false
    readOnlyRootFilesystem: true
    capabilities: {drop: [ALL], add: [CHOWN]}
  volumeMounts:
    - {name: {{ $volume }}, mountPath: {{ last . }}}
{{- end }}

{{/* The nodes of the depots, and of the test pod, which calls the depot of its node. */}}
{{- define "kvdepot.placement" -}}
{{- $gpu := .Values.gpu -}}
{{- with merge dict .Values.nodeSelector (ternary dict $gpu.nodeSelector (eq $gpu.mode "none")) }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with concat .Values.tolerations (ternary list $gpu.tolerations (eq $gpu.mode "none")) }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* A probe of one service by the gRPC health protocol: (list . "kvdepot.v1.CacheService"). */}}
{{- define "kvdepot.probe" -}}
{{- $root := first . -}}
{{- if $root.Values.tls.secretName -}}
exec:
  command: [python, -m, kvdepot.cli.health, --address, {{ include "kvdepot.socket" $root | quote }}, --service, {{ last . | quote }}]
{{- else -}}
grpc:
  port: {{ $root.Values.service.port }}
  {{- with last . }}
  service: {{ . }}
  {{- end }}
{{- end }}
{{- end }}
