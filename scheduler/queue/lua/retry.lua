#!lua flags=allow-oom
-- Give running jobs back to their lanes, at their own ranks: after a failure, or at no cost. May be repeated.
-- KEYS[1] prefix of the queue's keys
-- ARGV a row `return` a job (scheduler/queue/rows.py). event: the retrying event. counts: 1 for a failure, else 0. error: '' for
--   none. used_tokens: '' if nobody knows
-- returns, for each job: 1 | 0 refused: the job is no longer this token's
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
-- @include "lib/usage"
-- @include "lib/waste"

local delays_ms = {}
for at = 1, #ARGV, RETURN_WIDTH do delays_ms[at] = argument(at + RETURN_DELAY_MS, 0, MOST_MS) end
if #ARGV % RETURN_WIDTH > 0 then error('the arguments are not a row a job') end

local function return_job(at)
  local id, token, counts = ARGV[at + RETURN_JOB_ID], ARGV[at + RETURN_TOKEN], ARGV[at + RETURN_COUNTS] == '1'
  local delay_ms, error = delays_ms[at], ARGV[at + RETURN_ERROR]
  local rec = read(id, { 's', 'k', 'l', 'p', 't', 'q', 'x', 'f', 'n', 'o', 'w', 'y', 'v', 'c' })
  if not rec or rec.k ~= token then return 0 end
  if rec.s == 'waiting' or rec.s == 'delayed' or rec.s == 'held' then return 1 end
  if rec.s ~= 'running' or not sound(rec) or not rec.q then return 0 end
  count_waste(id, token, false)
  emit(id, ARGV, at + RETURN_EVENT, at + RETURN_EVENT)
  redis.call('ZREM', leases_key, id)
  redis.call('HINCRBY', record_key(id), counts and 'f' or 'W', 1)
  if error ~= '' then redis.call('HSET', record_key(id), 'i', error) end
  record_usage(id, rec, whole(ARGV[at + RETURN_USED_TOKENS], 0, MOST_NUMBER))
  remember(id, rec.y, counts and 'failed' or 'given_back', rec.w, rec.n, error)
  if delay_ms > 0 then
    make_delayed(id, rec, now_ms + delay_ms)
  else
    make_ready(id, rec)
  end
  count_waiting(rec.l, 1)
  add(counts and 't:retried' or 't:given_back', 1)
  return 1
end

local replies = {}
for at = 1, #ARGV, RETURN_WIDTH do replies[#replies + 1] = return_job(at) end
save_gates()
save_counts()
wake_lanes()
return replies
