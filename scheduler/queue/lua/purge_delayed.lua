#!lua flags=allow-oom
-- Cancel delayed jobs of a lane, the soonest due first. One bounded chunk a call.
-- KEYS[1] prefix of the queue's keys
-- ARGV[1] lane  ARGV[2] priority, '' for every level  ARGV[3] the first delayed job to read, from 0  ARGV[4] how many to read
-- returns {where to go on, -1 at the end; how many were cancelled}
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

local lane, only, from, chunk = ARGV[1], optional(2, 0, 9), argument(3, 0, MOST_NUMBER), argument(4, 1, MOST_JOBS)
local ids, purged = redis.call('ZRANGE', delayed_key, text(from), text(from + chunk - 1)), 0
for _, id in ipairs(ids) do
  local rec = read(id, ENDING)
  if sound(rec) and rec.s == 'delayed' and rec.l == lane and (only == '' or only == tonumber(rec.p)) then
    end_job(id, rec, 'cancelled', 'purged')
    purged = purged + 1
  end
end
save_ended()
save_counts()
return { #ids < chunk and -1 or from + chunk - purged, purged }
