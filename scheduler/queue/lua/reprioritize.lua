#!lua flags=allow-oom
-- Change the priority of a job that has not ended; it keeps its rank. May be repeated.
-- KEYS[1] prefix of the queue's keys
-- ARGV[1] job  ARGV[2] priority, 0 to 9
-- returns the job's state, or 'not_found'
-- @include "lib/clock"
-- @include "lib/argument"
-- @include "lib/record"
-- @include "lib/history"
-- @include "lib/level"
-- @include "lib/wake"

local id, priority = ARGV[1], argument(2, 0, 9)
local rec = read(id, { 's', 'p', 'l', 't', 'q', 'o', 'y' })
if not sound(rec) or not rec.q then return 'not_found' end
if ENDED[rec.s] or tonumber(rec.p) == priority then return rec.s end
if rec.s == 'waiting' or rec.s == 'held' then move_level(place_of(rec), rec.p, priority, id, tonumber(rec.q)) end
if rec.s == 'waiting' then wake(rec.l) end
redis.call('HSET', record_key(id), 'p', priority)
remember(id, rec.y, 'priority', nil, nil, rec.p .. ' to ' .. priority)
return rec.s
