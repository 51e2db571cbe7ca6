-- Health of an OnnxModel: what its conditions Ready, Reconciling and Stalled say about the spec that Git asked for.
-- Uses no library, so that it runs as Argo CD runs scripts by default.
local status = obj.status or {}

if (status.observedGeneration or 0) ~= obj.metadata.generation then
  return { status = "Progressing", message = "Waiting for onnx-operator to look at this spec" }
end

local conditions = {}
for _, condition in ipairs(status.conditions or {}) do
  conditions[condition.type] = condition
end
local ready, stalled = conditions.Ready or {}, conditions.Stalled or {}

if stalled.status == "True" then
  return { status = "Degraded", message = stalled.reason .. ": " .. stalled.message }
end
if ready.status == "True" then
  return { status = "Healthy", message = ready.message }
end
if ready.reason == "Paused" then
  return { status = "Suspended", message = ready.message }
end
return { status = "Progressing", message = (ready.reason or "Pending") .. ": " .. (ready.message or "") }
