-- The levels of a lane, and a bitmap of those in use, so that a claim over many lanes reads few keys.
local function has_level(bits, p)
  local bit = 2 ^ p
  return bits % (2 * bit) >= bit
end

-- Bitmaps as this script last read or wrote them: it alone changes them while it runs.
local bitmaps = {}

local function level_bits(lane)
  bitmaps[lane] = bitmaps[lane] or tonumber(redis.call('HGET', meta_key, 'b:' .. lane) or 0)
  return bitmaps[lane]
end

-- The lanes beside a lane are forgotten when they are empty.
local function put_bits(lane, bits)
  bitmaps[lane] = bits
  local beside = string.find(lane, ' ', 1, true)
  if bits == 0 and beside then
    redis.call('HDEL', meta_key, 'b:' .. lane)
    redis.call('ZREM', limited_key, lane)
    redis.call('HDEL', released_key, lane)
  else
    redis.call('HSET', meta_key, 'b:' .. lane, text(bits))
    if not beside then return end
    if is_held(lane) then
      redis.call('ZADD', limited_key, 'NX', text(now_ms), lane)
    else
      -- So that a claim looks for suspects where there may be some, and not in every lane; mend() takes it back.
      redis.call('HSET', meta_key, 'suspects', '1')
    end
  end
end

local function set_level(lane, p, used)
  local bits = level_bits(lane)
  if has_level(bits, p) == used then return end
  put_bits(lane, bits + (used and 2 ^ p or -(2 ^ p)))
  if used then redis.call('SADD', lanes_key, lane_of(lane)) end
end

local function enter_level(lane, p, id, rank)
  redis.call('ZADD', level_key(lane, p), text(rank), id)
  set_level(lane, p, true)
end

-- ids: at most what unpack takes. more: whether others are there, where the caller knows it.
local function leave_level(lane, p, ids, more)
  local key = level_key(lane, p)
  redis.call('ZREM', key, unpack(ids))
  if more == nil then more = redis.call('EXISTS', key) == 1 end
  if not more then set_level(lane, p, false) end
end

-- Enter first: a held lane that is empty in between would be forgotten.
local function move_level(lane, from, to, id, rank)
  enter_level(lane, to, id, rank)
  leave_level(lane, from, { id })
end
