-- The rate at which jobs have ended over the last minute, in jobs a second; enqueue makes retry_after of it.
local SAMPLES = 7
local SAMPLE_EVERY_MS = 10000

local function ended_so_far()
  local totals, ended = redis.call('HMGET', meta_key, 't:done', 't:failed', 't:cancelled', 't:expired', 't:shed'), 0
  for i = 1, 5 do ended = ended + (tonumber(totals[i]) or 0) end
  return ended
end

-- sampled_ms: when the last sample was taken.
local function sample_throughput(sampled_ms)
  if now_ms - sampled_ms < SAMPLE_EVERY_MS then return end
  local ended, first = ended_so_far(), redis.call('LINDEX', samples_key, -1)
  local at, count = string.match(first or '', '(%d+) (%d+)')
  if at then
    local rate = (ended - tonumber(count)) / math.max(0.001, (now_ms - tonumber(at)) / 1000)
    redis.call('HSET', meta_key, 'rate', string.format('%.3f', rate))
  end
  redis.call('LPUSH', samples_key, text(now_ms) .. ' ' .. text(ended))
  redis.call('LTRIM', samples_key, 0, SAMPLES - 1)
  redis.call('HSET', meta_key, 'sampled', text(now_ms))
end
