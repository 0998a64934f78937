-- The counts and the bitmaps of levels as they follow from what stands where.

-- Beyond this, which lanes the delayed jobs are of takes too long to find out.
local DELAYED_COUNTED = 200

-- Every place in which jobs may stand that wait or are held: the lanes, and those beside them.
local function places()
  local found, list = {}, {}
  local function see(place)
    if not found[place] then
      found[place], list[#list + 1] = true, place
    end
  end
  for _, lane in ipairs(redis.call('SMEMBERS', lanes_key)) do
    see(lane)
    see(suspects_lane(lane))
  end
  for _, held in ipairs(redis.call('ZRANGE', limited_key, 0, -1)) do see(held) end
  for _, field in ipairs(redis.call('HKEYS', meta_key)) do
    if string.sub(field, 1, 2) == 'b:' then see(string.sub(field, 3)) end
  end
  return list
end

-- What is true, and true of each lane unless very many jobs are delayed: field of meta -> number; and place -> bitmap.
local function reckon()
  local counts, bits = { n = redis.call('ZCARD', delayed_key) }, {}
  for _, place in ipairs(places()) do
    local lane, jobs = lane_of(place), 0
    bits[place] = 0
    for p = 0, 9 do
      local n = redis.call('ZCARD', level_key(place, p))
      jobs = jobs + n
      if n > 0 then bits[place] = bits[place] + 2 ^ p end
    end
    counts.n, counts['n:' .. lane] = counts.n + jobs, (counts['n:' .. lane] or 0) + jobs
  end
  local delayed = redis.call('ZRANGE', delayed_key, 0, DELAYED_COUNTED)
  if #delayed > DELAYED_COUNTED then return { n = counts.n }, bits end
  for _, id in ipairs(delayed) do
    local rec = read(id, { 'l' })
    if rec and rec.l then counts['n:' .. rec.l] = (counts['n:' .. rec.l] or 0) + 1 end
  end
  return counts, bits
end

local function mend()
  local counts, bits = reckon()
  for field, n in pairs(counts) do redis.call('HSET', meta_key, field, text(n)) end
  redis.call('HDEL', meta_key, 'suspects')
  for place, used in pairs(bits) do put_bits(place, used) end
end
