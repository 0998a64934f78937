-- The queue's clock stays steady when Redis' own clock is set back or forward.
local JUMP_BACK_MS = 1000
local JUMP_FORWARD_MS = 5000
local is_set_back = behind_us > 1000 * JUMP_BACK_MS

-- silent_ms: how long the worker process has waited since it was told known_tick_ms, the queue's time at a tick, by its own clock; both
-- nil on its first tick. They are how the clock survives a Redis that has lost `ahead` with its data.
-- Returns false if Redis' clock seems to have been set forward. A call that was delayed on its way looks the same, so the clock is
-- corrected only when the worker process calls again at once (is_sure).
local function keep_time(silent_ms, known_tick_ms, is_sure)
  if is_set_back then redis.call('HINCRBY', meta_key, 'ahead', text(math.floor(behind_us / 1000))) end
  local tick_ms = last_tick_ms or known_tick_ms
  local jump_ms = tick_ms and silent_ms and now_ms - tick_ms - silent_ms or 0
  local is_behind = not last_tick_ms and jump_ms < -JUMP_BACK_MS
  if not is_behind and jump_ms < JUMP_FORWARD_MS then return true end
  if not is_behind and not is_sure then return false end
  redis.call('HINCRBY', meta_key, 'ahead', text(-jump_ms))
  now_ms, now_us = now_ms - jump_ms, now_us - 1000 * jump_ms
  -- Limits that were reached since the jump name a time that is far off.
  redis.call('HSET', meta_key, 'limits changed', '0 0')
  return true
end
