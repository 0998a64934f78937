-- A lane has at most one wake token. The process that takes it passes it on if it leaves claimable work behind. A lane with work of
-- 8 or 9 has another one, for processes whose only free slots are reserved for such work.
local function has_urgent(lane) return level_bits(lane) >= 2 ^ URGENT or level_bits(suspects_lane(lane)) >= 2 ^ URGENT end

local function leave_token(key)
  if redis.call('LLEN', key) > 0 then return false end
  redis.call('RPUSH', key, '1')
  return true
end

-- Wake a process for a lane that is not paused. urgent: whether there is work of 8 or 9, if the caller knows it.
local function rouse(lane, urgent)
  if urgent == nil then urgent = has_urgent(lane) end
  if urgent then leave_token(urgent_key(lane)) end
  return leave_token(wake_key(lane))
end

local function wake(lane)
  return redis.call('SISMEMBER', paused_key, lane) == 0 and rouse(lane)
end

-- Lanes that get work in this call; wake_lanes wakes them at its end, and returns how many were woken.
local to_wake = {}

local function wake_lanes()
  local woken = 0
  for lane in pairs(to_wake) do
    if wake(lane) then woken = woken + 1 end
  end
  return woken
end
