#!lua flags=allow-oom
-- Let jobs of a paused lane be claimed again. May be repeated.
-- KEYS[1] prefix of the queue's keys
-- ARGV[1] lane
-- returns 1 if the lane was paused before
-- @include "lib/clock"
-- @include "lib/record"
-- @include "lib/level"
-- @include "lib/wake"
local was_paused = redis.call('SREM', paused_key, ARGV[1])
wake(ARGV[1])
return was_paused
