-- The queue's clock stays steady when Redis' own clock is set back or forward.
local JUMP_BACK_MS = 1000
local JUMP_FORWARD_MS = 5000
local is_set_back = behind_us > 1000 * JUMP_BACK_MS

-- silent_ms: how long the worker process has waited since its last tick, by its own clock; nil on its first tick.
-- Returns false if Redis' clock seems to have been set forward. A call that was delayed on its way looks the same, so the clock is
-- corrected only when the worker process calls again at once (is_sure).
local function keep_time(silent_ms, is_sure)
  if is_set_back then redis.call('HINCRBY', meta_key, 'ahead', text(math.floor(behind_us / 1000))) end
  local jump_ms = last_tick_ms and silent_ms and now_ms - last_tick_ms - silent_ms or 0
  if jump_ms < JUMP_FORWARD_MS then return true end
  if not is_sure then return false end
  redis.call('HINCRBY', meta_key, 'ahead', text(-jump_ms))
  now_ms, now_us = now_ms - jump_ms, now_us - 1000 * jump_ms
  return true
end
