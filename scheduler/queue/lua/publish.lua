#!lua flags=allow-oom
-- Append events to streams and publish them, fenced by tokens. May be repeated.
-- KEYS[1] prefix of the queue's keys
-- ARGV, repeated: a row `publication` (scheduler/queue/rows.py), and its events, JSON
-- returns, for each publication: 1 | 0 refused: the job is no longer this token's
-- @include "lib/argument"
-- @include "lib/record"
-- @include "lib/event"

local FIELDS = { 's', 'k' }

-- The last seq of a token in the stream, 0 if there is none: the write may be a repetition.
local function last_seq(id, token)
  local newest = redis.pcall('LINDEX', stream_key(id), -1)
  local last_token, seq = token_and_seq(type(newest) == 'string' and newest or '')
  return last_token == tonumber(token) and seq or 0
end

local starts, counts, at = {}, {}, 1
while at <= #ARGV do
  local n = argument(at + PUBLICATION_EVENTS, 0, #ARGV)
  starts[#starts + 1], counts[#counts + 1] = at, n
  at = at + PUBLICATION_WIDTH + n
end
if at ~= #ARGV + 1 then error('the number of arguments fits no number of events') end

local replies = {}
for i, at in ipairs(starts) do
  local id, token, n = ARGV[at + PUBLICATION_JOB_ID], ARGV[at + PUBLICATION_TOKEN], counts[i]
  local first, events = whole(ARGV[at + PUBLICATION_FIRST_SEQ], 1, MOST_NUMBER) or 1, at + PUBLICATION_WIDTH
  local rec = read(id, FIELDS)
  local accepted = rec and rec.k == token
  if accepted and rec.s == 'running' then
    local there = math.max(0, last_seq(id, token) - first + 1)
    if there < n then emit(id, ARGV, events + there, events + n - 1) end
    if first == 1 then redis.call('PEXPIRE', stream_key(id), RUNNING_STREAM_MS) end
  elseif accepted then
    accepted = last_seq(id, token) >= first + n - 1
  end
  replies[#replies + 1] = accepted and 1 or 0
end
return replies
