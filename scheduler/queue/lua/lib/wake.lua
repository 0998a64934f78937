-- One token a lane at most: whoever takes it and leaves claimable work behind passes it on.
local function wake(lane)
  if redis.call('SISMEMBER', paused_key, lane) == 1 then return false end
  local key = wake_key(lane)
  if redis.call('LLEN', key) > 0 then return false end
  redis.call('RPUSH', key, '1')
  return true
end
