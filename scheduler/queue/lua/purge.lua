#!lua flags=allow-oom
-- Cancel waiting and held jobs of a lane, the least urgent level first and its last jobs first; if there are very many held lanes,
-- the jobs of some of them. One bounded chunk a call.
-- KEYS[1] prefix of the queue's keys
-- ARGV[1] lane  ARGV[2] priority, '' for every level  ARGV[3] how many at most
-- ARGV[4] where to go on in the held lanes, '' at first
-- returns {how many were cancelled, where to go on, '' at the end}
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
-- @include "lib/conclude"
-- @include "lib/garbage"
-- @include "lib/walk"

local HELD_LANES_A_CALL = 64

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
local held, next_bookmark = walk('ZSCAN', limited_key, ARGV[4], HELD_LANES_A_CALL)
for i = 1, #held, 2 do
  if lane_of(held[i]) == lane then places[#places + 1] = held[i] end
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
-- There may be more in these.
if purged > 0 and purged == limit then next_bookmark = ARGV[4] == '' and '0 0' or ARGV[4] end
return { purged, next_bookmark or '' }
