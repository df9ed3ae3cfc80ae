{{/* The rules of rules/, with the values of `alerts`. A number before `# threshold` is the threshold of its alert. */}}

{{- define "kvdepot.ruleGroups" -}}
{{- range $path, $_ := .Files.Glob "rules/*.yaml" -}}
{{- range $group := ($.Files.Get $path | fromYaml).groups -}}
{{- $rules := list -}}
{{- range $rule := $group.rules -}}
{{- $own := default dict (get $.Values.alerts.rules (default "" $rule.alert)) -}}
{{- if not $rule.alert -}}
{{- $rules = append $rules $rule -}}
{{- else if dig "enabled" true $own -}}
{{- $rules = append $rules (include "kvdepot.alert" (list $ $rule $own) | fromYaml) -}}
{{- end -}}
{{- end -}}
{{- with $rules }}
{{ list (dict "name" $group.name "rules" .) | toYaml }}
{{- end -}}
{{- end -}}
{{- end -}}
{{- with .Values.alerts.extraGroups }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* One alert with its own values: (list $ $rule $own). Its description names what differs. */}}
{{- define "kvdepot.alert" -}}
{{- $alerts := (index . 0).Values.alerts -}}{{- $rule := index . 1 -}}{{- $own := index . 2 -}}
{{- $changes := list -}}
{{- if not (kindIs "invalid" $own.threshold) -}}
{{- $expression := "([0-9][0-9.e* ]*) # threshold" -}}
{{- $default := regexFind $expression $rule.expr | trimSuffix " # threshold" -}}
{{- $changes = append $changes (printf "a threshold of %v instead of %s" $own.threshold $default) -}}
{{- $_ := set $rule "expr" (regexReplaceAll $expression $rule.expr (printf "%v # threshold" $own.threshold)) -}}
{{- end -}}
{{- if $own.for -}}
{{- $changes = append $changes (printf "a duration of %s instead of %s" $own.for (default "0s" $rule.for)) -}}
{{- end -}}
{{- $annotations := $rule.annotations -}}
{{- $anchor := last (splitList "#" $annotations.runbook_url) -}}
{{- $base := $alerts.runbookBaseUrl -}}
{{- $_ := set $annotations "runbook_url" (printf "%s%s%s" $base (hasSuffix "/" $base | ternary "" "#") $anchor) -}}
{{- with $changes -}}
{{- $_ := set $annotations "description" (printf "%s This installation uses %s." $annotations.description (join " and " .)) -}}
{{- end -}}
{{- $_ := set $rule "annotations" (mergeOverwrite $annotations $alerts.annotations (default dict $own.annotations)) -}}
{{- $_ := set $rule "labels" (mergeOverwrite $rule.labels $alerts.labels (default dict $own.labels)) -}}
{{- mergeOverwrite $rule (omit $own "enabled" "threshold" "annotations" "labels") | toYaml }}
{{- end }}
