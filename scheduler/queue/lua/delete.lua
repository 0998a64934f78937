#!lua flags=allow-oom
-- Delete an ended job now, with all its text. May be repeated.
-- KEYS[1] prefix of the queue's keys
-- ARGV[1] job
-- returns 'deleted' | the state of a job that has not ended | 'not_found'
-- @include "lib/clock"
-- @include "lib/record"
-- @include "lib/count"
-- @include "lib/forget"

local id = ARGV[1]
local rec = read(id, { 's', 't', 'd' })
if not rec or not (LIVE[rec.s] or ENDED[rec.s]) then return 'not_found' end
if LIVE[rec.s] then return rec.s end
forget(id, rec)
add('t:deleted', 1)
save_counts()
return 'deleted'
