#!lua flags=allow-oom
-- Cancel waiting jobs of a lane, the last in order first. One bounded chunk a call.
-- KEYS[1] prefix of the queue's keys
-- ARGV[1] lane  ARGV[2] priority, '' for every level  ARGV[3] how many at most
-- returns how many were cancelled
-- @include "lib/clock"
-- @include "lib/record"
-- @include "lib/level"
-- @include "lib/count"
-- @include "lib/event"
-- @include "lib/ending"
-- @include "lib/garbage"

local lane, only, limit = ARGV[1], ARGV[2], tonumber(ARGV[3])
local purged = 0
for p = 0, 9 do
  if (only == '' or tonumber(only) == p) and purged < limit then
    for _, id in ipairs(redis.call('ZREVRANGE', level_key(lane, p), 0, limit - purged - 1)) do
      local rec = read(id, unpack(ENDING))
      if sound(rec) and rec.s == 'waiting' and rec.l == lane and tonumber(rec.p) == p then
        end_job(id, rec, 'cancelled', 'purged')
      else
        leave_level(lane, p, id)
        count_waiting(lane, -1)
        set_aside(id, rec, 'waiting')
      end
      purged = purged + 1
    end
  end
end
save_counts()
return purged
