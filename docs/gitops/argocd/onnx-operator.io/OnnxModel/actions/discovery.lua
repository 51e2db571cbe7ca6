-- Which actions do something now. The others are shown, too, and cannot be chosen.
local status = obj.status or {}
local rollout = obj.spec.rollout or {}

local is = {}
for _, condition in ipairs(status.conditions or {}) do
  is[condition.type] = condition.status
end
local is_under_way = status.candidate ~= nil
local is_paused = rollout.paused == true

return {
  ["pause"] = { disabled = is_paused or not is_under_way },
  ["resume"] = { disabled = not is_paused },
  -- A paused rollout is promoted when it is resumed, not before.
  ["promote"] = { disabled = is_paused or not is_under_way },
  ["abort"] = { disabled = not is_under_way },
  -- What the class refuses is not in quarantine: another try would be refused the same.
  ["retry"] = { disabled = is.Stalled ~= "True" or is.Accepted ~= "True" },
}
