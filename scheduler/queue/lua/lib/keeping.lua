-- How long ended jobs are kept, and how many of them. A script reads these settings once.
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

-- How long an ended job is kept, ms: the longest of what its worker process (asked_ms) and its callers (rec.g) ask for, and of
-- mode window; without any of them the queue's result_ttl_ms.
local function keep_ms_of(state, rec, asked_ms)
  local keep = keeping()
  if state == 'failed' then return keep.dead_ms end
  local asked, wanted = whole(asked_ms, 1, keep.most_ms), whole(rec.g, 1, keep.most_ms)
  local keep_ms = asked and wanted and math.max(asked, wanted) or asked or wanted or math.min(keep.most_ms, keep.result_ms)
  if state == 'done' and rec.m == 'window' then return math.max(keep_ms, keep.window_ms) end
  return keep_ms
end
