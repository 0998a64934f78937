-- The levels of a lane, and a bitmap of those in use, so that a claim over many lanes reads few keys.
local function has_level(bits, p)
  local bit = 2 ^ p
  return bits % (2 * bit) >= bit
end

-- Bitmaps as this script last read or wrote them: nobody else changes them while it runs.
local bitmaps = {}

-- There may be as many lanes beside a lane as tenants, so their bitmaps have a hash of their own.
local function is_beside(lane) return string.find(lane, ' ', 1, true) end

local function level_bits(lane)
  if not bitmaps[lane] then
    local key, field = meta_key, 'b:' .. lane
    if is_beside(lane) then key, field = beside_key, lane end
    bitmaps[lane] = tonumber(redis.call('HGET', key, field) or 0)
  end
  return bitmaps[lane]
end

-- A lane beside a lane is forgotten when it is empty.
local function put_bits(lane, bits)
  bitmaps[lane] = bits
  if not is_beside(lane) then
    redis.call('HSET', meta_key, 'b:' .. lane, text(bits))
  elseif bits == 0 then
    redis.call('HDEL', beside_key, lane)
    redis.call('ZREM', limited_key, lane)
    redis.call('HDEL', released_key, lane)
  else
    redis.call('HSET', beside_key, lane, text(bits))
    if is_held(lane) then
      redis.call('ZADD', limited_key, 'NX', text(now_ms), lane)
    else
      -- Claims look for suspects only if this says that there may be some; tend takes it back.
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

-- ids: at most as many as unpack takes. more: whether others are left, if the caller knows it.
local function leave_level(lane, p, ids, more)
  local key = level_key(lane, p)
  redis.call('ZREM', key, unpack(ids))
  if more == nil then more = redis.call('EXISTS', key) == 1 end
  if not more then set_level(lane, p, false) end
end

-- Enters first: a held lane would be forgotten if it were empty in between.
local function move_level(lane, from, to, id, rank)
  enter_level(lane, to, id, rank)
  leave_level(lane, from, { id })
end
