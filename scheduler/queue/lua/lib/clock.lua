-- Redis' clock, and numbers as text that keeps all digits (tostring and .. round to 14).
local function text(number) return string.format('%.0f', number) end

local clock = redis.call('TIME')
local now_us = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local now_ms = math.floor(now_us / 1000)

-- A microsecond that no other call has got: the clock stands still inside a script.
local function unique_us(n)
  local last = tonumber(redis.call('HGET', meta_key, 'us') or 0)
  local first = math.max(last + 1, now_us)
  redis.call('HSET', meta_key, 'us', text(first + n - 1))
  return first
end
