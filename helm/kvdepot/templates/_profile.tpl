{{/* Gives the values that are null those of the profile. Each file that is rendered begins with it. */}}

{{- define "kvdepot.applyProfile" -}}
{{- $profiles := .Files.Get "profiles.yaml" | fromYaml -}}
{{- if not .Values.profile -}}
{{- $choices := list -}}
{{- range $name, $profile := $profiles -}}
{{- $choices = append $choices (printf "%s (%s of L1 %s)" $name $profile.settings.l1_size (ternary "on each node" "in one pod" (eq $profile.kind "DaemonSet"))) -}}
{{- end -}}
{{- fail (printf "\nprofile: it is empty, so nothing says how much memory of which nodes the depots may take; set it to %s. Values that you set override the profile" (join ", " $choices)) -}}
{{- end -}}
{{- range $name, $given := get $profiles (default "try" .Values.profile) -}}
{{- if kindIs "map" $given -}}
{{- $section := get $.Values $name -}}
{{- range $inner, $value := $given -}}
{{- if kindIs "invalid" (index $section $inner) -}}
{{- $_ := set $section $inner $value -}}
{{- end -}}
{{- end -}}
{{- else if kindIs "invalid" (index $.Values $name) -}}
{{- $_ := set $.Values $name $given -}}
{{- end -}}
{{- end -}}
{{- end }}
