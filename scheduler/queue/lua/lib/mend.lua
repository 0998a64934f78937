-- Counts and bitmaps, made again from the jobs that are in each place.

-- Beyond these, counting the delayed and held jobs by lane, and all jobs, takes too long.
local COUNTED = 200
local PLACES_SUMMED = 64

-- A bitmap of a place's levels in use, and how many jobs it has.
local function levels_of(place)
  local bits, jobs = 0, 0
  for p = 0, 9 do
    local n = redis.call('ZCARD', level_key(place, p))
    jobs = jobs + n
    if n > 0 then bits = bits + 2 ^ p end
  end
  return bits, jobs
end

-- How many delayed and held jobs each lane has; nil if there are too many to count.
local function unclaimed_by_lane()
  if redis.call('ZCARD', delayed_key) > COUNTED or redis.call('ZCARD', limited_key) > COUNTED then return nil end
  local by_lane = {}
  for _, id in ipairs(redis.call('ZRANGE', delayed_key, 0, -1)) do
    local rec = read(id, { 'l' })
    if rec and rec.l then by_lane[rec.l] = (by_lane[rec.l] or 0) + 1 end
  end
  for _, held in ipairs(redis.call('ZRANGE', limited_key, 0, -1)) do
    local lane, bits = lane_of(held), level_bits(held)
    for p = 0, 9 do
      if has_level(bits, p) then by_lane[lane] = (by_lane[lane] or 0) + redis.call('ZCARD', level_key(held, p)) end
    end
  end
  return by_lane
end

-- The right count of a lane; nil if there are too many delayed and held jobs.
local function count_of(lane, jobs, unclaimed)
  return unclaimed and jobs + (unclaimed[lane] or 0)
end

-- How many jobs are waiting, delayed and held; nil if they are in too many places.
local function count_of_all()
  local lanes = redis.call('SCARD', lanes_key)
  if 2 * lanes + redis.call('HLEN', beside_key) + redis.call('ZCARD', limited_key) > PLACES_SUMMED then return nil end
  local n, seen = redis.call('ZCARD', delayed_key), {}
  local function see(place)
    if seen[place] then return end
    seen[place] = true
    local _, jobs = levels_of(place)
    n = n + jobs
  end
  for _, lane in ipairs(redis.call('SMEMBERS', lanes_key)) do
    see(lane)
    see(suspects_lane(lane))
  end
  for _, held in ipairs(redis.call('ZRANGE', limited_key, 0, -1)) do see(held) end
  for _, place in ipairs(redis.call('HKEYS', beside_key)) do see(place) end
  return n
end

local function mend_place(place)
  local bits, jobs = levels_of(place)
  if bits ~= level_bits(place) or place ~= lane_of(place) and (bits > 0 or is_held(place)) then put_bits(place, bits) end
  return jobs
end

local function mend_lane(lane, unclaimed)
  local n = count_of(lane, mend_place(lane) + mend_place(suspects_lane(lane)), unclaimed)
  local field = 'n:' .. lane
  local wrong = n and n - tonumber(redis.call('HGET', meta_key, field) or 0) or 0
  if wrong ~= 0 then
    redis.call('HINCRBY', meta_key, field, text(wrong))
    redis.call('HINCRBY', meta_key, 'n', text(wrong))
  end
end

local function mend_count_of_all()
  local n = count_of_all()
  if n then redis.call('HSET', meta_key, 'n', text(n)) end
end
