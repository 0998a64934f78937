#!lua flags=allow-oom
-- Run a job again that ended without a result; its failures are forgotten. May be repeated.
-- KEYS[1] prefix of the queue's keys
-- ARGV[1] job  ARGV[2] another request, JSON; '' for its own
-- returns 'waiting' | 'held' | the job's state if it cannot be requeued | 'not_found' | 'payload_lost'
-- @include "lib/clock"
-- @include "lib/argument"
-- @include "lib/record"
-- @include "lib/history"
-- @include "lib/level"
-- @include "lib/count"
-- @include "lib/wake"
-- @include "lib/event"
-- @include "lib/limit"
-- @include "lib/hold"
-- @include "lib/ready"

local id, request = ARGV[1], ARGV[2]
local rec = read(id, { 's', 'p', 'l', 't', 'd', 'r', 'n', 'k', 'y', 'q', 'R', 'b' })
if not sound(rec) then return 'not_found' end
if not ENDED[rec.s] or rec.s == 'done' then return rec.s end
if redis.call('EXISTS', payload_key(id)) == 0 then return 'payload_lost' end
if request ~= '' then
  -- Its dedup key belongs to its former request.
  redis.call('SET', payload_key(id), request)
  redis.call('HDEL', record_key(id), 'd', 'h', 'm', 'H')
  rec.d = nil
end
redis.call('ZREM', dead_key, id)
redis.call('ZREM', finished_key, id)
redis.call('PERSIST', record_key(id))
redis.call('PERSIST', payload_key(id))
redis.call('DEL', stream_key(id), result_key(id), tickets_key(id))
redis.call('HDEL', record_key(id), 'f', 'W', 'o', 'e', 'r', 'i', 'z', 'x', 'u', 'j', 'w', 'c', 'R')
remember(id, rec.y, 'requeued', nil, rec.n, rec.s .. ': ' .. (rec.r or '') .. (request ~= '' and '; edited' or ''))
local enqueued_ms = rec.b or text(rec.q and ready_ms(rec) or now_ms)
rec.x, rec.q = nil, unique_us()
redis.call('HSET', record_key(id), 'q', text(rec.q), 'b', enqueued_ms, 'k', text(next_token()))
save_us()
if rec.d then redis.call('SET', dedup_key(rec.t, rec.d), id, 'NX') end
make_ready(id, rec)
count_waiting(rec.l, 1)
add('t:requeued', 1)
save_counts()
wake_lanes()
return rec.s
