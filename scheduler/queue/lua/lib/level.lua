-- The levels of a lane, and a bitmap of those in use, so that a claim over many lanes reads few keys.
local function has_level(bits, p) return math.floor(bits / 2 ^ p) % 2 == 1 end

-- Bitmaps as this script last read or wrote them: it alone changes them while it runs.
local bitmaps = {}

local function level_bits(lane)
  bitmaps[lane] = bitmaps[lane] or tonumber(redis.call('HGET', meta_key, 'b:' .. lane) or 0)
  return bitmaps[lane]
end

local function set_level(lane, p, used)
  local bits = level_bits(lane)
  if has_level(bits, p) == used then return end
  bitmaps[lane] = bits + (used and 2 ^ p or -(2 ^ p))
  redis.call('HSET', meta_key, 'b:' .. lane, text(bitmaps[lane]))
  if used then redis.call('SADD', lanes_key, lane) end
end

local function enter_level(lane, p, id, rank)
  redis.call('ZADD', level_key(lane, p), text(rank), id)
  set_level(lane, p, true)
end

local function leave_level(lane, p, ...)
  local key = level_key(lane, p)
  redis.call('ZREM', key, ...)
  if redis.call('EXISTS', key) == 0 then set_level(lane, p, false) end
end
