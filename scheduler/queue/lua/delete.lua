#!lua flags=allow-oom
-- Forget an ended job now, with all of its text. May be repeated.
-- KEYS[1] prefix of the queue's keys
-- ARGV[1] job
-- returns 'deleted' | the state of a job that has not ended | 'not_found'
-- @include "lib/record"
-- @include "lib/count"

local id = ARGV[1]
local rec = read(id, { 's', 't', 'd' })
if not rec or not (LIVE[rec.s] or ENDED[rec.s]) then return 'not_found' end
if LIVE[rec.s] then return rec.s end
-- A finished answer of mode window still owns its key.
if rec.d then
  local key = dedup_key(rec.t, rec.d)
  if redis.pcall('GET', key) == id then redis.call('DEL', key) end
end
redis.call('ZREM', dead_key, id)
redis.call('ZREM', finished_key, id)
redis.call('UNLINK', record_key(id), payload_key(id), result_key(id), tickets_key(id), stream_key(id))
add('t:deleted', 1)
save_counts()
return 'deleted'
