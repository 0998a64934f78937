-- Finds the job that has to go when a full queue sheds: the least urgent, newest one that never ran.
local SHED_READS = 16
local SHED_DELAYED_READS = 128
local SHED_HELD_LANES = 64
local SHED_LANES = 1000
local SHED_PLACES = 16

-- What shedding has cost this call, in levels read.
local shed_cost = 0

-- The newest job of a level that never ran, with its rank.
local function newest_unrun(place, p)
  shed_cost = shed_cost + 1
  local state, from, to = is_held(place) and 'held' or 'waiting', 0, 0
  while from < SHED_READS do
    local ids = redis.call('ZREVRANGE', level_key(place, p), from, to, 'WITHSCORES')
    for i = 1, #ids, 2 do
      local rec = read(ids[i], ENDING)
      if sound(rec) and rec.s == state and place_of(rec) == place and tonumber(rec.p) == p and not rec.n then
        return { id = ids[i], rec = rec, rank = tonumber(ids[i + 1]) }
      end
    end
    if #ids == 0 then return nil end
    from, to = to + 1, SHED_READS - 1
  end
end

-- Delayed jobs have no levels, so some of those due last are read: once a call, and again after the call has changed one.
local delayed

local function delayed_changed() delayed = nil end

local function list_delayed()
  delayed, shed_cost = {}, shed_cost + SHED_DELAYED_READS / 4
  for _, id in ipairs(redis.call('ZREVRANGE', delayed_key, 0, SHED_DELAYED_READS - 1)) do
    local rec = read(id, { 's', 'p', 'l', 'n' })
    if sound(rec) and rec.s == 'delayed' and not rec.n then
      delayed[#delayed + 1] = { id = id, p = tonumber(rec.p), lane = rec.l }
    end
  end
end

-- The delayed job of a priority that is due last and never ran. only: a lane, or nil for all.
local function last_delayed(p, only)
  if not delayed then list_delayed() end
  for i = 1, #delayed do
    local one = delayed[i]
    if one.p == p and (not only or one.lane == only) then
      local rec = read(one.id, { 'q', unpack(ENDING) })
      if sound(rec) and rec.q and rec.s == 'delayed' and tonumber(rec.p) == p then
        return { id = one.id, rec = rec, rank = tonumber(rec.q) }
      end
    end
  end
end

-- The places that use a level, by level: of all lanes, and of the held lanes with the longest to wait. Read once a call, and
-- kept up to date for what the call itself adds.
local places_at, is_listed

local function list_place(place, p)
  if not places_at or is_listed[p][place] then return end
  is_listed[p][place] = true
  table.insert(places_at[p], place)
end

local function list_places()
  places_at, is_listed = {}, {}
  for p = 0, 9 do places_at[p], is_listed[p] = {}, {} end
  local lanes = redis.call('SRANDMEMBER', lanes_key, SHED_LANES)
  for from = 1, #lanes, 1000 do
    local to, fields = math.min(#lanes, from + 999), {}
    for i = from, to do fields[#fields + 1] = 'b:' .. lanes[i] end
    local bits = redis.call('HMGET', meta_key, unpack(fields))
    for i = from, to do bitmaps[lanes[i]] = bitmaps[lanes[i]] or tonumber(bits[i - from + 1]) or 0 end
  end
  for _, held in ipairs(redis.call('ZREVRANGE', limited_key, 0, SHED_HELD_LANES - 1)) do lanes[#lanes + 1] = held end
  for _, place in ipairs(lanes) do
    local bits, p = level_bits(place), 0
    while bits > 0 do
      local used = bits % 2
      if used == 1 then list_place(place, p) end
      bits, p = (bits - used) / 2, p + 1
    end
  end
end

-- The newer of `newest` and the newest job of a level that never ran, in some of the places that use it.
local function newest_of(p, only, newest)
  local places, seen = places_at[p], 0
  for i = #places, 1, -1 do
    local place = places[i]
    if not has_level(level_bits(place), p) then
      is_listed[p][place], places[i] = nil, places[#places]
      places[#places] = nil
    elseif not only or lane_of(place) == only then
      local one = newest_unrun(place, p)
      if one and (not newest or one.rank > newest.rank) then newest = one end
      seen = seen + 1
      if seen == SHED_PLACES then break end
    end
  end
  return newest
end

-- The least urgent, newest job that never ran and is less urgent than `priority`. only: a lane, or nil for all.
local function victim(priority, only)
  if not places_at then list_places() end
  for p = 0, priority - 1 do
    local newest = newest_of(p, only, last_delayed(p, only))
    if newest then return newest end
  end
end
