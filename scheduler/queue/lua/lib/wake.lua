-- One token a lane at most: whoever takes it and leaves claimable work behind passes it on. A lane with work of 8 or 9 has
-- another one, for the worker processes that have no places left but those they keep for it.
local function has_urgent(lane) return level_bits(lane) >= 2 ^ URGENT or level_bits(suspects_lane(lane)) >= 2 ^ URGENT end

local function leave_token(key)
  if redis.call('LLEN', key) > 0 then return false end
  redis.call('RPUSH', key, '1')
  return true
end

-- Wake somebody for a lane that is not paused. urgent: whether there is work of 8 or 9, where the caller knows it.
local function rouse(lane, urgent)
  if urgent == nil then urgent = has_urgent(lane) end
  if urgent then leave_token(urgent_key(lane)) end
  return leave_token(wake_key(lane))
end

local function wake(lane)
  return redis.call('SISMEMBER', paused_key, lane) == 0 and rouse(lane)
end
