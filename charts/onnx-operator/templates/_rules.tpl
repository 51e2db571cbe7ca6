{{/*
What the operator may do where models live. It may read no Secret (Jobs mount them), no node and no log, and of a
model it writes the status alone.
*/}}
{{- define "onnx-operator.rules" -}}
- apiGroups: [onnx-operator.io]
  resources: [onnxmodels]
  verbs: [get, list, watch]
- apiGroups: [onnx-operator.io]
  resources: [onnxmodelrevisions]
  verbs: [get, list, watch, create, delete]
- apiGroups: [onnx-operator.io]
  resources: [onnxmodels/status, onnxmodelrevisions/status]
  verbs: [patch]
# Owner references that block their owner's deletion ask for this where OwnerReferencesPermissionEnforcement is on.
- apiGroups: [onnx-operator.io]
  resources: [onnxmodels/finalizers, onnxmodelrevisions/finalizers]
  verbs: [update]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [gateway.networking.k8s.io]
  resources: [httproutes, grpcroutes]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
# list: why a Job has no pods (a quota, Pod Security) is told in Events alone.
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch, list]
{{- end }}
