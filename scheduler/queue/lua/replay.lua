#!lua flags=no-writes
-- A job's state and its events after a cursor, in one read.
-- KEYS[1] prefix of the queue's keys
-- ARGV[1] job  ARGV[2] token and ARGV[3] seq of the last event seen, 0 and 0 at first  ARGV[4] how many at most
-- returns {} for an unknown job, else {state, token of the last event, its seq, more (1 or 0), event JSON, …}
-- @include "lib/clock"
-- @include "lib/record"
-- @include "lib/event"

local id, after_token, after_seq, limit = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local rec = read(id, { 's', 'k', 'n', 'z', 'r', 'i' })
if not rec or not (LIVE[rec.s] or ENDED[rec.s]) then return {} end

local stream = stream_key(id)
local entries = redis.call('XRANGE', stream, '(' .. after_token .. '-' .. after_seq, '+', 'COUNT', limit + 1)
local reply = { rec.s, '0', '1', 0 }
if after_token == '0' and after_seq == '0' then reply[5] = event_json(id, 0, 1, 'queued') end
for i = 1, math.min(#entries, limit) do reply[#reply + 1] = entries[i][2][2] end
if #entries > limit then reply[4] = 1 end

local newest = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)
if newest[1] then
  reply[2], reply[3] = string.match(newest[1][1], '(%d+)-(%d+)')
end

-- The stream has gone before the record: make the terminal event from the record.
local k, z = tonumber(rec.k), tonumber(rec.z)
if ENDED[rec.s] and k and z and not (reply[2] == rec.k and reply[3] == rec.z) then
  reply[2], reply[3] = rec.k, rec.z
  local newer = k > tonumber(after_token) or (k == tonumber(after_token) and z > tonumber(after_seq))
  if newer and reply[4] == 0 then
    local rest = ',"reason":' .. cjson.encode(rec.r or rec.s)
    if rec.s == 'done' then
      rest = ',"result":' .. (redis.call('GET', result_key(id)) or '{"text":""}')
    elseif rec.s == 'failed' then
      rest = ',"error":' .. (rec.i or error_json(rec.r or 'unknown', 'no more is known'))
    end
    reply[#reply + 1] = event_json(id, k, rec.z, rec.s, rec.n, rest)
  end
end
return reply
