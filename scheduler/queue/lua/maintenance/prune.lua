-- Records of ended jobs expire by themselves; the lists of them are pruned here, by age and by number.
local OLD_A_CALL = 1000
local EXCESS_A_CALL = 250

local function drop_old(key)
  local n = math.min(OLD_A_CALL, redis.call('ZCOUNT', key, '-inf', text(now_ms)))
  return n > 0 and redis.call('ZREMRANGEBYRANK', key, 0, n - 1) or 0
end

-- Returns how many jobs have gone, and whether there may be more.
local function prune()
  local gone = drop_old(finished_key) + drop_old(dead_key)
  gone = gone + bound_dead(keeping().max_dead, EXCESS_A_CALL) + bound_finished(keeping().max_finished, EXCESS_A_CALL)
  redis.call('ZREMRANGEBYSCORE', workers_key, '-inf', text(now_ms))
  return gone, gone >= EXCESS_A_CALL
end
