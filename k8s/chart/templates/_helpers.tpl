{{/* The labels of an object: (list ROOT NAME COMPONENT). NAME may be empty. */}}
{{- define "llink.labels" -}}
{{- $root := index . 0 -}}
{{- with index . 1 }}
app.kubernetes.io/name: {{ . }}
{{- end }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
{{- with index . 2 }}
app.kubernetes.io/component: {{ . }}
{{- end }}
app.kubernetes.io/part-of: llink
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ $root.Chart.Name }}-{{ $root.Chart.Version }}
{{- end }}

{{/* The labels of pods, which do not change with the version. */}}
{{- define "llink.podLabels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ index . 1 }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 2 }}
app.kubernetes.io/part-of: llink
{{- end }}

{{- define "llink.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "llink.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: ["ALL"]
{{- end }}

{{/* The tolerations of unreachable nodes for SECONDS. */}}
{{- define "llink.away" -}}
- key: node.kubernetes.io/unreachable
  operator: Exists
  effect: NoExecute
  tolerationSeconds: {{ . }}
- key: node.kubernetes.io/not-ready
  operator: Exists
  effect: NoExecute
  tolerationSeconds: {{ . }}
{{- end }}

{{/* The settings of a pod from the values: (list ROOT VALUES). */}}
{{- define "llink.placement" -}}
{{- $root := index . 0 -}}
{{- $values := index . 1 -}}
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- end }}

{{/* The environment that both programs share. */}}
{{- define "llink.environment" -}}
- name: LLINK_ALLOW_ROOT
  valueFrom:
    configMapKeyRef:
      name: llink-settings
      key: allow-root
{{- if .Values.tracing.enabled }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ .Values.tracing.endpoint }}
{{- end }}
{{- end }}

{{- define "llink.envFrom" -}}
- secretRef:
    name: {{ .Values.store.secretName }}
    optional: true
{{- end }}

{{/* The checksum makes a changed setting change the template. */}}
{{- define "llink.checksum" -}}
checksum/settings: {{ join "," .Values.roots | sha256sum }}
{{- end }}
