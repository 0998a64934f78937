#!lua flags=allow-oom
-- End running jobs: append and publish the terminal event, store the result. Once a token; may be repeated.
-- KEYS[1] prefix of the queue's keys
-- ARGV, 10 a job: job, token, state, seq, event JSON, result JSON or '', reason, error JSON or '', result ttl (ms),
--   tokens that the attempt has used or '' where nobody knows
-- returns, a job: 1 | 0 refused, the job is not this token's any more
-- @include "lib/clock"
-- @include "lib/record"
-- @include "lib/level"
-- @include "lib/count"
-- @include "lib/event"
-- @include "lib/ending"
-- @include "lib/limit"
-- @include "lib/settle"

local conf = redis.call('HMGET', conf_key, 'dead_ttl_ms', 'dedup_ttl_ms')
local dead_ttl_ms, window_ms = tonumber(conf[1] or 604800000), tonumber(conf[2] or 3600000)

local function finish(at)
  local id, token, state, seq = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local rec = read(id, 's', 'k', 't', 'd', 'm', 'j', 'v')
  if not rec or rec.k ~= token then return 0 end
  if ENDED[rec.s] then return 1 end
  if rec.s ~= 'running' then return 0 end
  emit(id, token, seq, ARGV[at + 4])
  redis.call('ZREM', leases_key, id)
  local fields = { 's', state, 'e', text(now_ms), 'z', seq }
  if ARGV[at + 6] ~= '' then fields[7], fields[8] = 'r', ARGV[at + 6] end
  if ARGV[at + 7] ~= '' then fields[#fields + 1], fields[#fields + 2] = 'i', ARGV[at + 7] end
  redis.call('HSET', record_key(id), unpack(fields))
  settle_usage(id, rec, ARGV[at + 9])
  local keep_ms = tonumber(ARGV[at + 8])
  if state == 'failed' then keep_ms = dead_ttl_ms end
  if state == 'done' and rec.m == 'window' then keep_ms = math.max(keep_ms, window_ms) end
  if ARGV[at + 5] ~= '' then redis.call('SET', result_key(id), ARGV[at + 5], 'PX', text(keep_ms)) end
  retain(id, rec, state, keep_ms)
  release_dedup(id, rec, state, window_ms)
  add('t:' .. state, 1)
  return 1
end

local replies = {}
for at = 1, #ARGV, 10 do replies[#replies + 1] = finish(at) end
save_gates()
save_counts()
return replies
