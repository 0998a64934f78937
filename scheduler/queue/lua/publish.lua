#!lua flags=allow-oom
-- Append events to streams and publish them, fenced by tokens. May be repeated.
-- KEYS[1] prefix of the queue's keys
-- ARGV, again and again: job, token, seq of the first event, number of events, the events, JSON
-- returns, a job: 1 | 0 refused, the job is not this token's any more
-- @include "lib/clock"
-- @include "lib/record"
-- @include "lib/event"

-- Whether an event is in the stream already: the job has moved on under this very token, and the write is repeated.
local function published(id, token, seq)
  local newest = redis.call('XREVRANGE', stream_key(id), '+', '-', 'COUNT', 1)
  if not newest[1] then return false end
  local last_token, last_seq = string.match(newest[1][1], '(%d+)-(%d+)')
  return last_token == token and tonumber(last_seq) >= seq
end

local replies = {}
local i = 1
while i <= #ARGV do
  local id, token, first, n = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]), tonumber(ARGV[i + 3])
  local rec = read(id, { 's', 'k' })
  local accepted = rec and rec.k == token
  if accepted and rec.s == 'running' then
    for k = 0, n - 1 do emit(id, token, first + k, ARGV[i + 4 + k]) end
    if first == 1 then redis.call('PEXPIRE', stream_key(id), RUNNING_STREAM_MS) end
  elseif accepted then
    accepted = published(id, token, first + n - 1)
  end
  replies[#replies + 1] = accepted and 1 or 0
  i = i + 4 + n
end
return replies
