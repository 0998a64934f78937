-- After an outage of Redis, leases are old because nobody could renew them, not because worker processes died. So nothing is
-- reaped for one lease (meta's reap_after), and jobs whose leases end before that are not suspected (meta's excused).
local GAP_MS = 1000 -- between two ticks, while a worker process and Redis are up

local function excuse_leases(lease_ms)
  local until_ms = now_ms + lease_ms
  redis.call('HSET', meta_key, 'excused', text(until_ms))
  return until_ms
end

-- Outages that no worker process may have seen: Redis has been started since the last tick, or has refused commands since the
-- last time this was read.
local REFUSALS = { 'READONLY', 'NOREPLICAS', 'MISCONF', 'BUSY', 'LOADING', 'MASTERDOWN', 'CLUSTERDOWN' }
local function redis_was_at_fault(gap_ms)
  local info = redis.pcall('INFO', 'server', 'errorstats')
  if type(info) ~= 'string' then return false end
  local refusals, uptime_s = 0, tonumber(string.match(info, 'uptime_in_seconds:(%d+)'))
  for _, code in ipairs(REFUSALS) do
    refusals = refusals + (tonumber(string.match(info, 'errorstat_' .. code .. ':count=(%d+)')) or 0)
  end
  local before = tonumber(redis.call('HGET', meta_key, 'refusals')) or refusals
  redis.call('HSET', meta_key, 'refusals', text(refusals))
  return refusals > before or (gap_ms and uptime_s and 1000 * uptime_s < gap_ms)
end

-- was_away: the calling worker process has just been without Redis, and has excused the leases already.
-- Returns reap_after and excused_until, as they are now.
local function consider_outages(was_away, lease_ms, reap_after, excused_until)
  local gap_ms = last_tick_ms and now_ms - last_tick_ms
  if (not gap_ms or gap_ms > GAP_MS) and redis_was_at_fault(gap_ms) then excused_until = excuse_leases(lease_ms) end
  if was_away or not gap_ms or gap_ms > lease_ms / 2 then
    reap_after = now_ms + lease_ms
    redis.call('HSET', meta_key, 'reap_after', text(reap_after))
  end
  return reap_after, excused_until
end
