{{/* What all pods share. Every define below gets a dict: root (the chart's own context) and name (of the service). */}}

{{- define "banksman.fullname" -}}
{{- if contains "banksman" .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-banksman" .Release.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "banksman.selector" -}}
app.kubernetes.io/name: banksman
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .name }}
{{- end }}

{{- define "banksman.labels" -}}
{{ include "banksman.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{/* The port that a service answers /healthz, /readyz and /metrics on; enforcer and console everything else, too. */}}
{{- define "banksman.port" -}}
{{- get (dict "enforcer" "7700" "console" "7701") .name | default "7702" }}
{{- end }}

{{- define "banksman.image" -}}
{{- with .root.Values.image }}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default $.root.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{- define "banksman.policies" -}}
{{- .Values.policies.configMap | default (printf "%s-policies" (include "banksman.fullname" .)) }}
{{- end }}

{{/* Names that a Host header may carry: the pod's address (probes, Prometheus), the Services', and the clients' own. */}}
{{- define "banksman.hosts" -}}
{{- $names := list "$(POD_IP)" "[$(POD_IP)]" }}
{{- $service := printf "%s-%s" (include "banksman.fullname" .root) .name }}
{{- range list $service (printf "%s.%s" $service .root.Release.Namespace) (printf "%s.%s.svc" $service .root.Release.Namespace) (printf "%s.%s.svc.cluster.local" $service .root.Release.Namespace) }}
{{- $names = append $names . }}
{{- end }}
{{- join "," (concat $names .root.Values.hosts) }}
{{- end }}

{{/* Who a service is to Kafka, as JSON: its own user where it has one, else the one that all share. */}}
{{- define "banksman.kafka" -}}
{{- $shared := .root.Values.kafka }}
{{- $own := (index .root.Values .name).kafka }}
{{- $secret := ternary $own.passwordSecret $shared.passwordSecret (ne $own.passwordSecret.name "") }}
{{- dict "username" ($own.username | default $shared.username) "secret" $secret "tls" ($own.tlsSecret | default $shared.tlsSecret) | toJson }}
{{- end }}

{{/* Which secrets a service needs: no other is in its pod. */}}
{{- define "banksman.secrets" -}}
{{- $values := .root.Values }}
{{- $kafka := include "banksman.kafka" . | fromJson }}
{{- if ne .name "migrate" }}
- secret: {name: {{ $values.serverSecret.name }}, items: [{key: {{ $values.serverSecret.key }}, path: banksman_secret}]}
{{- end }}
{{- if hasPrefix "SASL" $values.kafka.security }}
- secret: {name: {{ $kafka.secret.name }}, items: [{key: {{ $kafka.secret.key }}, path: kafka_password}]}
{{- end }}
{{- if has .name (list "migrate" "archiver") }}
- secret: {name: {{ $values.clickhouse.passwordSecret.name }}, items: [{key: {{ $values.clickhouse.passwordSecret.key }}, path: clickhouse_password}]}
{{- end }}
{{- if eq .name "console" }}
- secret: {name: {{ $values.clickhouse.readerPasswordSecret.name }}, items: [{key: {{ $values.clickhouse.readerPasswordSecret.key }}, path: clickhouse_reader_password}]}
{{- end }}
{{- if and (eq .name "notifier") $values.slack.tokenSecret.name }}
- secret: {name: {{ $values.slack.tokenSecret.name }}, items: [{key: {{ $values.slack.tokenSecret.key }}, path: slack_token}]}
{{- end }}
{{- end }}

{{- define "banksman.environment" -}}
{{- $values := .root.Values }}
{{- $kafka := include "banksman.kafka" . | fromJson }}
- {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
- {name: BANKSMAN_KAFKA, value: {{ $values.kafka.brokers | quote }}}
- {name: BANKSMAN_KAFKA_SECURITY, value: {{ $values.kafka.security }}}
{{- if hasPrefix "SASL" $values.kafka.security }}
- {name: BANKSMAN_KAFKA_SASL_MECHANISM, value: {{ $values.kafka.mechanism }}}
- {name: BANKSMAN_KAFKA_USERNAME, value: {{ $kafka.username | quote }}}
- {name: BANKSMAN_KAFKA_PASSWORD_FILE, value: /run/secrets/banksman/kafka_password}
{{- end }}
{{- if $kafka.tls }}
- {name: BANKSMAN_KAFKA_CA_FILE, value: /run/secrets/kafka-tls/ca.crt}
{{- if $values.kafka.clientCertificate }}
- {name: BANKSMAN_KAFKA_CERT_FILE, value: /run/secrets/kafka-tls/tls.crt}
- {name: BANKSMAN_KAFKA_KEY_FILE, value: /run/secrets/kafka-tls/tls.key}
{{- end }}
{{- end }}
- {name: BANKSMAN_TOPIC_PREFIX, value: {{ $values.kafka.topicPrefix | quote }}}
- {name: BANKSMAN_PARTITIONS, value: {{ $values.kafka.partitions | quote }}}
- {name: BANKSMAN_REPLICATION, value: {{ $values.kafka.replication | quote }}}
{{- if ne .name "migrate" }}
- {name: BANKSMAN_SECRET_FILE, value: /run/secrets/banksman/banksman_secret}
- {name: BANKSMAN_HOSTS, value: {{ include "banksman.hosts" . | quote }}}
{{- if $values.tls.secret }}
- {name: BANKSMAN_TLS_CERT_FILE, value: /run/secrets/tls/tls.crt}
- {name: BANKSMAN_TLS_KEY_FILE, value: /run/secrets/tls/tls.key}
{{- else }}
- {name: BANKSMAN_ALLOW_PLAIN_HTTP, value: "true"}
{{- end }}
{{- end }}
{{- if has .name (list "migrate" "archiver" "console") }}
- {name: BANKSMAN_CLICKHOUSE, value: {{ $values.clickhouse.url | quote }}}
- {name: BANKSMAN_CLICKHOUSE_DATABASE, value: {{ $values.clickhouse.database }}}
{{- if $values.clickhouse.cluster }}
- {name: BANKSMAN_CLICKHOUSE_CLUSTER, value: {{ $values.clickhouse.cluster }}}
{{- end }}
- {name: BANKSMAN_RETENTION_DAYS, value: {{ $values.clickhouse.retentionDays | quote }}}
{{- if $values.clickhouse.caSecret }}
- {name: BANKSMAN_CLICKHOUSE_CA_FILE, value: /run/secrets/clickhouse-ca/ca.crt}
{{- end }}
{{- end }}
{{- if has .name (list "migrate" "archiver") }}
- {name: BANKSMAN_CLICKHOUSE_USER, value: {{ $values.clickhouse.username | quote }}}
- {name: BANKSMAN_CLICKHOUSE_PASSWORD_FILE, value: /run/secrets/banksman/clickhouse_password}
{{- end }}
{{- if eq .name "console" }}
- {name: BANKSMAN_CLICKHOUSE_READER, value: {{ $values.clickhouse.reader | quote }}}
- {name: BANKSMAN_CLICKHOUSE_READER_PASSWORD_FILE, value: /run/secrets/banksman/clickhouse_reader_password}
{{- end }}
{{- if has .name (list "processors" "archiver" "notifier") }}
- {name: BANKSMAN_WORKER, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
{{- end }}
{{- if eq .name "notifier" }}
- {name: BANKSMAN_SLACK_CHANNEL, value: {{ $values.slack.channel | quote }}}
{{- if $values.slack.tokenSecret.name }}
- {name: BANKSMAN_SLACK_TOKEN_FILE, value: /run/secrets/banksman/slack_token}
{{- end }}
{{- end }}
{{- range $name, $value := $values.settings }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end }}

{{- define "banksman.volumes" -}}
{{- $values := .root.Values }}
{{- $kafka := include "banksman.kafka" . | fromJson }}
- name: tmp
  emptyDir: {medium: Memory, sizeLimit: 16Mi}
- name: secrets
  projected:
    defaultMode: 0440
    sources:
      {{- include "banksman.secrets" . | trim | nindent 6 }}
{{- if $kafka.tls }}
- name: kafka-tls
  secret: {secretName: {{ $kafka.tls }}, defaultMode: 0440}
{{- end }}
{{- if and $values.clickhouse.caSecret (has .name (list "migrate" "archiver" "console")) }}
- name: clickhouse-ca
  secret: {secretName: {{ $values.clickhouse.caSecret }}, defaultMode: 0440}
{{- end }}
{{- if and $values.tls.secret (ne .name "migrate") }}
- name: tls
  secret: {secretName: {{ $values.tls.secret }}, defaultMode: 0440}
{{- end }}
{{- if eq .name "enforcer" }}
- name: policies
  {{- if $values.policies.claim }}
  persistentVolumeClaim: {claimName: {{ $values.policies.claim }}, readOnly: true}
  {{- else }}
  configMap: {name: {{ include "banksman.policies" .root }}}
  {{- end }}
{{- end }}
{{- end }}

{{- define "banksman.mounts" -}}
{{- $values := .root.Values }}
{{- $kafka := include "banksman.kafka" . | fromJson }}
- {name: tmp, mountPath: /tmp}
- {name: secrets, mountPath: /run/secrets/banksman, readOnly: true}
{{- if $kafka.tls }}
- {name: kafka-tls, mountPath: /run/secrets/kafka-tls, readOnly: true}
{{- end }}
{{- if and $values.clickhouse.caSecret (has .name (list "migrate" "archiver" "console")) }}
- {name: clickhouse-ca, mountPath: /run/secrets/clickhouse-ca, readOnly: true}
{{- end }}
{{- if and $values.tls.secret (ne .name "migrate") }}
- {name: tls, mountPath: /run/secrets/tls, readOnly: true}
{{- end }}
{{- if eq .name "enforcer" }}
- {name: policies, mountPath: /etc/banksman/policies, readOnly: true}
{{- end }}
{{- end }}

{{/* The pod of a service, or of `migrate`. It is what the "restricted" Pod Security Standard asks for, and more. */}}
{{- define "banksman.pod" -}}
{{- $values := .root.Values }}
{{- $own := index $values .name }}
metadata:
  labels:
    {{- include "banksman.labels" . | nindent 4 }}
  {{- with $values.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  automountServiceAccountToken: false
  enableServiceLinks: false
  securityContext:
    runAsNonRoot: true
    runAsUser: 10001
    runAsGroup: 10001
    fsGroup: 10001
    seccompProfile: {type: RuntimeDefault}
  {{- with $values.image.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  {{- if eq .name "migrate" }}
  restartPolicy: OnFailure
  {{- else }}
  terminationGracePeriodSeconds: 30
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "banksman.selector" . | nindent 10 }}
  {{- end }}
  containers:
    - name: {{ .name }}
      image: {{ include "banksman.image" . | quote }}
      imagePullPolicy: {{ $values.image.pullPolicy }}
      {{- if eq .name "migrate" }}
      args: [migrate]
      {{- else }}
      args: [serve, {{ .name }}]
      {{- end }}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities: {drop: [ALL]}
      env:
        {{- include "banksman.environment" . | trim | nindent 8 }}
      resources:
        {{- toYaml $own.resources | nindent 8 }}
      {{- if ne .name "migrate" }}
      ports:
        - {name: http, containerPort: {{ include "banksman.port" . }}}
      livenessProbe:
        httpGet: {path: /healthz, port: http, scheme: {{ ternary "HTTPS" "HTTP" (ne $values.tls.secret "") }}}
        initialDelaySeconds: 5
        periodSeconds: 10
        timeoutSeconds: 3
        failureThreshold: 6
      readinessProbe:
        httpGet: {path: /readyz, port: http, scheme: {{ ternary "HTTPS" "HTTP" (ne $values.tls.secret "") }}}
        periodSeconds: 5
        timeoutSeconds: 3
        failureThreshold: 2
      {{- end }}
      {{- if has .name (list "enforcer" "console") }}
      lifecycle:
        preStop: # nobody sends it requests any more before it ends
          exec: {command: [python, -c, "import time; time.sleep(5)"]}
      {{- end }}
      volumeMounts:
        {{- include "banksman.mounts" . | trim | nindent 8 }}
  volumes:
    {{- include "banksman.volumes" . | trim | nindent 4 }}
  {{- with $values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
