-- How long, and how much, is kept of jobs that have ended. One read a script.
local keep_settings

local function keeping()
  if not keep_settings then
    local conf = redis.call('HMGET', conf_key, 'result_ttl_ms', 'max_result_ttl_ms', 'dead_ttl_ms', 'dedup_ttl_ms', 'max_dead', 'max_finished', 'spare_bytes')
    keep_settings = {
      result_ms = whole(conf[1], 1, MOST_MS) or DEFAULT_RESULT_TTL_MS,
      most_ms = whole(conf[2], 1, MOST_MS) or DEFAULT_MAX_RESULT_TTL_MS,
      dead_ms = whole(conf[3], 1, MOST_MS) or DEFAULT_DEAD_TTL_MS,
      window_ms = whole(conf[4], 1, MOST_MS) or DEFAULT_DEDUP_TTL_MS,
      max_dead = whole(conf[5], 0, MOST_NUMBER) or DEFAULT_MAX_DEAD,
      max_finished = whole(conf[6], 0, MOST_NUMBER) or DEFAULT_MAX_FINISHED,
      spare_bytes = whole(conf[7], 0, MOST_NUMBER) or DEFAULT_SPARE_BYTES,
    }
  end
  return keep_settings
end

-- For how many ms an ended job is kept; asked_ms: what its callers have asked for, nil for the queue's own time.
local function keep_ms_of(state, asked_ms)
  local keep = keeping()
  if state == 'failed' then return keep.dead_ms end
  return whole(asked_ms, 1, keep.most_ms) or math.min(keep.most_ms, keep.result_ms)
end
