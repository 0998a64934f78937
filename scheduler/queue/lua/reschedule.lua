#!lua flags=allow-oom
-- Make a delayed job due at another time, or now. May be repeated.
-- KEYS[1] prefix of the queue's keys
-- ARGV[1] job  ARGV[2] delay from now, ms; 0: now
-- returns 'delayed' | 'waiting' | 'held' | the state of a job that is not delayed | 'not_found'
-- @include "lib/clock"
-- @include "lib/argument"
-- @include "lib/record"
-- @include "lib/history"
-- @include "lib/level"
-- @include "lib/wake"
-- @include "lib/limit"
-- @include "lib/hold"
-- @include "lib/ready"

local id, delay_ms = ARGV[1], argument(2, 0, MOST_MS)
local rec = read(id, { 's', 'p', 'l', 't', 'q', 'x', 'o', 'n', 'u', 'y' })
if not sound(rec) or not rec.q then return 'not_found' end
if rec.s ~= 'delayed' then return rec.s end
-- A retry keeps its rank; another job ages from when it is due.
if not rec.n then
  rec.q = text(unique_us() + delay_ms * 1000)
  redis.call('HSET', record_key(id), 'q', rec.q)
  save_us()
end
remember(id, rec.y, 'rescheduled', nil, nil, delay_ms > 0 and 'due in ' .. text(delay_ms) .. ' ms' or 'due now')
if delay_ms > 0 then
  make_delayed(id, rec, now_ms + delay_ms)
  return 'delayed'
end
redis.call('ZREM', delayed_key, id)
redis.call('HDEL', record_key(id), 'u')
make_ready(id, rec)
wake_lanes()
return rec.s
