#!lua flags=allow-oom
-- Cancel waiting and held jobs of a lane, the least urgent level and the last in it first. One bounded chunk a call.
-- KEYS[1] prefix of the queue's keys
-- ARGV[1] lane  ARGV[2] priority, '' for every level  ARGV[3] how many at most
-- returns how many were cancelled
-- @include "lib/clock"
-- @include "lib/argument"
-- @include "lib/record"
-- @include "lib/level"
-- @include "lib/count"
-- @include "lib/event"
-- @include "lib/many"
-- @include "lib/forget"
-- @include "lib/keeping"
-- @include "lib/spare"
-- @include "lib/alias"
-- @include "lib/ending"
-- @include "lib/garbage"

local lane, only, limit = named(1), optional(2, 0, 9), argument(3, 0, MOST_JOBS)
local purged = 0

local function purge_level(place, p)
  for _, id in ipairs(redis.call('ZREVRANGE', level_key(place, p), 0, limit - purged - 1)) do
    local rec = read(id, ENDING)
    local state = is_held(place) and 'held' or 'waiting'
    if sound(rec) and rec.s == state and place_of(rec) == place and tonumber(rec.p) == p then
      end_job(id, rec, 'cancelled', 'purged')
    else
      leave_level(place, p, { id })
      count_waiting(lane, -1)
      set_aside(id, rec, state)
    end
    purged = purged + 1
  end
end

local places = { lane, suspects_lane(lane) }
for _, held in ipairs(redis.call('ZRANGE', limited_key, 0, -1)) do
  if lane_of(held) == lane then places[#places + 1] = held end
end
for p = 0, 9 do
  for _, place in ipairs(places) do
    if (only == '' or only == p) and purged < limit and has_level(level_bits(place), p) then
      purge_level(place, p)
    end
  end
end
save_ended()
save_counts()
return purged
