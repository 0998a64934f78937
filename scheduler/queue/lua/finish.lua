#!lua flags=allow-oom
-- End running jobs: write and publish their last events, store the result or error, and publish the terminal event. Once for each
-- token; may be repeated. The terminal event is in no stream: replay makes it from the record.
-- KEYS[1] prefix of the queue's keys
-- ARGV, repeated: a row `ending` (scheduler/queue/rows.py), its events before the terminal one, JSON, and a row `outcome`:
--   head: the terminal event's JSON up to its last value. value: that value: result JSON, error JSON or ''. A result '' is large
--   and is in the job's staged key; the caller publishes the terminal event itself. reason: '' for a result. used_tokens: '' if
--   nobody knows
-- returns, for each job: 1 | 0 refused: the job is no longer this token's | 2 the staged result has gone
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
-- @include "lib/conclude"
-- @include "lib/limit"
-- @include "lib/usage"

local FIELDS = { 's', 'k', 'l', 't', 'd', 'm', 'j', 'v', 'c', 'g' }

-- Before the first write: where each job begins, and how many events it has.
local starts, counts, at = {}, {}, 1
while at <= #ARGV do
  local n = argument(at + ENDING_EVENTS, 0, #ARGV)
  starts[#starts + 1], counts[#counts + 1] = at, n
  if not ENDED[ARGV[at + ENDING_STATE]] then error('ARGV[' .. at + ENDING_STATE .. '] is not a state in which a job ends') end
  at = at + ENDING_WIDTH + n + OUTCOME_WIDTH
end
if at ~= #ARGV + 1 then error('the arguments do not fit the numbers of events') end

local unleased = {}

-- Lua would copy a large result several times, so it goes from key to key.
local function keep_staged(id, keep_ms)
  if redis.call('EXISTS', staged_key(id)) == 1 then redis.call('RENAME', staged_key(id), result_key(id)) end
  redis.call('PEXPIRE', result_key(id), text(keep_ms))
end

local function finish(at, n)
  local id, token, state = ARGV[at + ENDING_JOB_ID], ARGV[at + ENDING_TOKEN], ARGV[at + ENDING_STATE]
  local events, outcome = at + ENDING_WIDTH, at + ENDING_WIDTH + n
  local value, reason = ARGV[outcome + OUTCOME_VALUE], ARGV[outcome + OUTCOME_REASON]
  local staged = state == 'done' and value == ''
  local rec = read(id, FIELDS)
  if not rec or rec.k ~= token then return 0 end
  if staged and redis.call('EXISTS', staged_key(id), result_key(id)) == 0 then return 2 end
  if ENDED[rec.s] then
    -- A record that never expires is of a call that broke off: this one completes it.
    if rec.s ~= state or redis.call('PTTL', record_key(id)) ~= -1 then return 1 end
  elseif rec.s ~= 'running' then
    return 0
  elseif n > 0 then
    emit(id, ARGV, events, outcome - 1)
  end
  local seq = text((whole(ARGV[at + ENDING_FIRST_SEQ], 1, MOST_NUMBER) or 1) + n)
  local keep_ms = keep_ms_of(state, rec, ARGV[outcome + OUTCOME_RESULT_TTL_MS])
  unleased[#unleased + 1] = id
  record_usage(id, rec, whole(ARGV[outcome + OUTCOME_USED_TOKENS], 0, MOST_NUMBER))
  if staged then
    keep_staged(id, keep_ms)
  elseif state == 'done' then
    redis.call('SET', result_key(id), value, 'PX', text(keep_ms))
  end
  local event = not staged and ARGV[outcome + OUTCOME_HEAD] .. value .. '}'
  if state == 'done' then
    conclude(id, rec, state, nil, keep_ms, event, 'z', seq)
  elseif state == 'failed' then
    conclude(id, rec, state, reason, keep_ms, event, 'z', seq, 'r', reason, 'i', value)
  else
    conclude(id, rec, state, reason, keep_ms, event, 'z', seq, 'r', reason)
  end
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
