-- The queue's clock, and numbers as text that keeps all digits, as Lua's own ways do not beyond 14.
local function text(number) return string.format('%d', number) end

-- It is Redis' clock, and `ahead` ms more where that one has been put back (less, where it has been put forward): see keep_time in
-- tick. It never goes back behind the last tick.
local clock, kept = redis.call('TIME'), redis.call('HMGET', meta_key, 'tick', 'ahead', 'us', 'format')
local now_us = tonumber(clock[1]) * 1000000 + tonumber(clock[2]) + 1000 * (tonumber(kept[2]) or 0)
local last_tick_ms = tonumber(kept[1])
local behind_us = math.max(0, 1000 * (last_tick_ms or 0) - now_us)
now_us = now_us + behind_us
local now_ms = math.floor(now_us / 1000)

local last_us

-- A microsecond that no other call has got: the clock stands still inside a script. save_us() keeps it so.
local function unique_us()
  last_us = last_us or tonumber(kept[3] or 0)
  last_us = math.max(last_us + 1, now_us)
  return last_us
end

local function save_us()
  if last_us then redis.call('HSET', meta_key, 'us', text(last_us)) end
end
