#!lua flags=allow-oom
-- End running jobs: write and publish the events that are left, store the end and what came of it, publish it. Once a token;
-- may be repeated. The terminal event is in no stream: it is made from the record, see replay.
-- KEYS[1] prefix of the queue's keys
-- ARGV, again and again: job, token, state, seq of the first event, number of events before the terminal one, those events,
--   JSON, the terminal event's JSON up to its last value, that value: result JSON, error JSON or '', reason or '',
--   result ttl (ms), tokens that the attempt has used or '' where nobody knows
-- returns, a job: 1 | 0 refused, the job is not this token's any more
-- @include "lib/clock"
-- @include "lib/record"
-- @include "lib/level"
-- @include "lib/count"
-- @include "lib/event"
-- @include "lib/ending"
-- @include "lib/limit"
-- @include "lib/settle"

local FIELDS = { 's', 'k', 'l', 't', 'd', 'm', 'j', 'v', 'c' }

local conf = redis.call('HMGET', conf_key, 'dead_ttl_ms', 'dedup_ttl_ms')
local dead_ttl_ms, window_ms = tonumber(conf[1] or 604800000), tonumber(conf[2] or 3600000)
local unleased, ended_at = {}, text(now_ms)

local function finish(at, n)
  local id, token, state, first = ARGV[at], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
  local rec = read(id, FIELDS)
  if not rec or rec.k ~= token then return 0 end
  if ENDED[rec.s] then return 1 end
  if rec.s ~= 'running' then return 0 end
  if n > 0 then emit(id, unpack(ARGV, at + 5, at + 4 + n)) end
  at = at + 5 + n
  local head, value, reason, keep_ms, used = ARGV[at], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3]), ARGV[at + 4]
  tell(channel_key(id), head .. value .. '}')
  redis.call('HSET', record_key(id), 's', state, 'e', ended_at, 'z', first + n)
  if reason ~= '' then redis.call('HSET', record_key(id), 'r', reason) end
  if state == 'failed' then redis.call('HSET', record_key(id), 'i', value) end
  unleased[#unleased + 1] = id
  settle_usage(id, rec, used)
  count_attempt(rec)
  if state == 'failed' then keep_ms = dead_ttl_ms end
  if state == 'done' then
    if rec.m == 'window' then keep_ms = math.max(keep_ms, window_ms) end
    redis.call('SET', result_key(id), value, 'PX', keep_ms)
  end
  retain(id, rec, state, keep_ms)
  release_dedup(id, rec, state, window_ms)
  add('t:' .. state, 1)
  if rec.l then add('ran:' .. rec.l, 1) end
  return 1
end

local replies, at = {}, 1
while at <= #ARGV do
  local n = tonumber(ARGV[at + 4])
  replies[#replies + 1] = finish(at, n)
  at = at + 10 + n
end
if #unleased > 0 then redis.call('ZREM', leases_key, unpack(unleased)) end
save_gates()
save_ended()
save_counts()
return replies
