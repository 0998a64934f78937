-- Forget a lane that has no route, no jobs and is not paused; its next job brings it back. Returns whether it was forgotten.
local function forget_if_unused(lane)
  if level_bits(lane) > 0 or level_bits(suspects_lane(lane)) > 0 then return false end
  if (tonumber(redis.call('HGET', meta_key, 'n:' .. lane)) or 0) ~= 0 then return false end
  if redis.call('HEXISTS', routes_key, lane) == 1 or redis.call('SISMEMBER', paused_key, lane) == 1 then return false end
  redis.call('SREM', lanes_key, lane)
  redis.call('HDEL', meta_key, 'b:' .. lane, 'n:' .. lane, 'ms:' .. lane, 'ran:' .. lane, 'mean:' .. lane)
  redis.call('UNLINK', wake_key(lane), urgent_key(lane), work_key(lane))
  return true
end
