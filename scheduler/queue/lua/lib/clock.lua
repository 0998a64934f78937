-- Redis' clock, and numbers as text that keeps all digits (tostring and .. round to 14).
local function text(number) return string.format('%d', number) end

local clock = redis.call('TIME')
local now_us = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local now_ms = math.floor(now_us / 1000)

local last_us

-- A microsecond that no other call has got: the clock stands still inside a script. save_us() keeps it so.
local function unique_us()
  last_us = last_us or tonumber(redis.call('HGET', meta_key, 'us') or 0)
  last_us = math.max(last_us + 1, now_us)
  return last_us
end

local function save_us()
  if last_us then redis.call('HSET', meta_key, 'us', text(last_us)) end
end
