{{/* The pod template of the workers, for a Deployment or a Job. */}}
{{- define "llink.worker" -}}
{{- $job := eq .Values.workers.kind "Job" -}}
metadata:
  labels:
    {{- include "llink.podLabels" (list . "llink-worker" "worker") | nindent 4 }}
    {{- if not $job }}
    llink/workload: deployment
    {{- end }}
  annotations:
    {{- include "llink.checksum" . | nindent 4 }}
    {{- if $job }}
    {{- range $key, $value := .Values.workers.topology }}
    kueue.x-k8s.io/{{ $key }}: {{ $value | quote }}
    {{- end }}
    {{- end }}
    {{- with .Values.workers.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  {{- if $job }}
  restartPolicy: Never
  {{- end }}
  serviceAccountName: llink-worker
  automountServiceAccountToken: false
  enableServiceLinks: false
  # After SIGTERM the worker has LLINK_GRACE_S to save a checkpoint and give its leases back.
  terminationGracePeriodSeconds: 120
  {{- if .Values.workers.rdma.enabled }}
  hostNetwork: true
  dnsPolicy: ClusterFirstWithHostNet
  {{- end }}
  securityContext: {{- include "llink.podSecurity" . | nindent 4 }}
  {{- include "llink.placement" (list . .Values.workers) | nindent 2 }}
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          app.kubernetes.io/name: llink-worker
      {{- if not $job }}
      matchLabelKeys: ["pod-template-hash"]
      {{- end }}
  tolerations:
    - key: nvidia.com/gpu
      operator: Exists
      effect: NoSchedule
    {{- include "llink.away" 15 | nindent 4 }}
    {{- with .Values.workers.tolerations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  containers:
    - name: worker
      image: {{ .Values.workers.image }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      command: ["llink-worker"]
      env:
        - name: LLINK_COORDINATOR
          value: https://llink-coordinator:7070
        - name: LLINK_WORKER_NAME
          valueFrom:
            fieldRef:
              fieldPath: metadata.name
        - name: LLINK_TLS_CA
          value: /etc/llink/tls/ca.crt
        - name: LLINK_TLS_CERT
          value: /etc/llink/tls/tls.crt
        - name: LLINK_TLS_KEY
          value: /etc/llink/tls/tls.key
        - name: LLINK_HEALTH
          value: "[::]:7071"
        - name: LLINK_DEVICE
          value: {{ .Values.workers.device | quote }}
        {{- if $job }}
        - name: LLINK_IDLE_EXIT_S
          value: {{ .Values.workers.idleExitSeconds | quote }}
        {{- end }}
        - name: HF_HOME
          value: /var/cache/llink/huggingface
        - name: LLINK_GRACE_S
          value: "110"
        {{- if .Values.workers.rdma.enabled }}
        - name: NCCL_IB_DISABLE
          value: "0"
        {{- end }}
        {{- include "llink.environment" . | nindent 8 }}
        {{- with .Values.workers.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      envFrom: {{- include "llink.envFrom" . | nindent 8 }}
      ports:
        - name: health
          containerPort: 7071
      startupProbe:
        grpc:
          port: 7071
        periodSeconds: 2
        failureThreshold: 60
      # Readiness means that the coordinator knows the worker.
      readinessProbe:
        grpc:
          port: 7071
          service: ready
        periodSeconds: 5
        timeoutSeconds: 2
      # Liveness means that the process answers. A coordinator that is away must not cause restarts of workers.
      livenessProbe:
        grpc:
          port: 7071
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      {{- $resources := deepCopy .Values.workers.resources }}
      {{- if .Values.workers.rdma.enabled }}
      {{- $rdma := dict .Values.workers.rdma.resource "1" }}
      {{- $resources = merge $resources (dict "requests" $rdma "limits" $rdma) }}
      {{- end }}
      resources: {{- toYaml $resources | nindent 8 }}
      securityContext: {{- include "llink.containerSecurity" . | nindent 8 }}
      volumeMounts:
        - name: tls
          mountPath: /etc/llink/tls
          readOnly: true
        - name: tmp
          mountPath: /tmp
        - name: cache
          mountPath: /var/cache/llink
        - name: shm
          mountPath: /dev/shm
        {{- if .Values.data.enabled }}
        - name: data
          mountPath: /data
        {{- end }}
  volumes:
    - name: tls
      secret:
        secretName: llink-worker-tls
        defaultMode: 288 # 0440
    - name: tmp
      emptyDir:
        sizeLimit: {{ .Values.workers.volumes.tmp }}
    - name: cache
      {{- if .Values.workers.volumes.cacheClaim }}
      persistentVolumeClaim:
        claimName: {{ .Values.workers.volumes.cacheClaim }}
      {{- else }}
      emptyDir:
        sizeLimit: {{ .Values.workers.volumes.cache }}
      {{- end }}
    - name: shm
      emptyDir:
        medium: Memory
        sizeLimit: {{ .Values.workers.volumes.shm }}
    {{- if .Values.data.enabled }}
    - name: data
      persistentVolumeClaim:
        claimName: llink-data
    {{- end }}
{{- end }}
