#!lua flags=allow-oom
-- End running jobs: write and publish the events that are left, store the end and what came of it, publish it. Once a token;
-- may be repeated. The terminal event is in no stream: it is made from the record, see replay.
-- KEYS[1] prefix of the queue's keys
-- ARGV, again and again: job, token, state, seq of the first event, number of events before the terminal one, those events,
--   JSON, the terminal event's JSON up to its last value, that value: result JSON, error JSON or '', reason or '',
--   result ttl (ms), tokens that the attempt has used or '' where nobody knows
--   a result of '' is large, and stands in the job's staged key; who staged it publishes the terminal event
-- returns, a job: 1 | 0 refused, the job is not this token's any more | 2 its result has gone from where it was staged
-- @include "lib/clock"
-- @include "lib/argument"
-- @include "lib/record"
-- @include "lib/level"
-- @include "lib/count"
-- @include "lib/event"
-- @include "lib/many"
-- @include "lib/forget"
-- @include "lib/keeping"
-- @include "lib/spare"
-- @include "lib/alias"
-- @include "lib/ending"
-- @include "lib/limit"
-- @include "lib/settle"

local FIELDS = { 's', 'k', 'l', 't', 'd', 'm', 'j', 'v', 'c', 'g' }

-- Of all jobs, before anything is written: where one begins, and how many events it has.
local starts, counts, at = {}, {}, 1
while at <= #ARGV do
  local n = argument(at + 4, 0, #ARGV)
  starts[#starts + 1], counts[#counts + 1] = at, n
  if not ENDED[ARGV[at + 2]] then error('ARGV[' .. at + 2 .. '] is no state that a job ends in') end
  at = at + 10 + n
end
if at ~= #ARGV + 1 then error('the number of arguments fits no number of events') end

local unleased, ended_at = {}, text(now_ms)

-- Callers who joined may have asked for it to be kept for longer than the worker process knows.
local function keep_ms_of_end(state, rec, asked_ms)
  local keep_ms = keep_ms_of(state, asked_ms)
  if rec.g and state ~= 'failed' then keep_ms = math.max(keep_ms, keep_ms_of(state, rec.g)) end
  if state == 'done' and rec.m == 'window' then return math.max(keep_ms, keeping().window_ms) end
  return keep_ms
end

-- Keep a large result, which Lua would copy many times.
local function keep_staged(id, span)
  if redis.call('EXISTS', staged_key(id)) == 1 then redis.call('RENAME', staged_key(id), result_key(id)) end
  redis.call('PEXPIRE', result_key(id), span)
end

local function finish(at, n)
  local id, token, state = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local staged = state == 'done' and ARGV[at + 6 + n] == ''
  local rec = read(id, FIELDS)
  if not rec or rec.k ~= token then return 0 end
  if staged and redis.call('EXISTS', staged_key(id), result_key(id)) == 0 then return 2 end
  if ENDED[rec.s] then
    -- Where it broke off half-way, which leaves a record that never goes, the rest is made up for.
    if rec.s ~= state or redis.call('PTTL', record_key(id)) ~= -1 then return 1 end
  elseif rec.s ~= 'running' then
    return 0
  elseif n > 0 then
    emit(id, ARGV, at + 5, at + 4 + n)
  end
  local seq = (whole(ARGV[at + 3], 1, MOST_NUMBER) or 1) + n
  at = at + 5 + n
  local head, value, reason = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  if not staged then tell(channel_key(id), head .. value .. '}') end
  redis.call('HSET', record_key(id), 's', state, 'e', ended_at, 'z', text(seq))
  if reason ~= '' then redis.call('HSET', record_key(id), 'r', reason) end
  if state == 'failed' then redis.call('HSET', record_key(id), 'i', value) end
  unleased[#unleased + 1] = id
  settle_usage(id, rec, whole(ARGV[at + 4], 0, MOST_NUMBER))
  count_attempt(rec)
  local keep_ms = keep_ms_of_end(state, rec, ARGV[at + 3])
  local span = spans[keep_ms] or text(keep_ms)
  if staged then
    keep_staged(id, span)
  elseif state == 'done' then
    redis.call('SET', result_key(id), value, 'PX', span)
  end
  retain(id, rec, state, keep_ms, reason)
  release_dedup(id, rec, state)
  add('t:' .. state, 1)
  if rec.l then add('ran:' .. rec.l, 1) end
  return 1
end

local replies = {}
for i = 1, #starts do replies[i] = finish(starts[i], counts[i]) end
each_chunk('ZREM', leases_key, unleased)
save_gates()
save_ended()
save_counts()
return replies
