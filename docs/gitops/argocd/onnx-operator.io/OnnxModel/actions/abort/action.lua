-- Any change of the token is one request, so the present moment will do.
local os = require("os")
obj.spec.rollout = obj.spec.rollout or {}
obj.spec.rollout.abortToken = os.date("!%Y-%m-%dT%H:%M:%SZ")
return obj
