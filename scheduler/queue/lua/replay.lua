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

local stream, token, seq = stream_key(id), tonumber(after_token), tonumber(after_seq)
local length = redis.call('LLEN', stream)

local function id_at(at) return token_and_seq(redis.call('LINDEX', stream, at) or '') end

local function is_after(event_token, event_seq)
  return event_token and (event_token > token or (event_token == token and event_seq > seq))
end

-- Where the events after the cursor begin: they stand in the order of their ids.
local function after_cursor()
  local low, high = 0, length
  if token == 0 and seq == 0 then return 0 end
  while low < high do
    local middle = math.floor((low + high) / 2)
    if is_after(id_at(middle)) then high = middle else low = middle + 1 end
  end
  return low
end

local first = after_cursor()
local events = first < length and redis.call('LRANGE', stream, first, first + limit - 1) or {}
local reply = { rec.s, '0', '1', 0 }
if token == 0 and seq == 0 then reply[5] = queued_json(id) end
for i = 1, #events do reply[#reply + 1] = events[i] end
if length - first > limit then reply[4] = 1 end
if length > 0 then
  local last_token, last_seq = id_at(-1)
  if last_token then reply[2], reply[3] = text(last_token), text(last_seq) end
end

-- The terminal event is in no stream: it is made from the record.
local k, z = tonumber(rec.k), tonumber(rec.z)
if ENDED[rec.s] and k and z then
  reply[2], reply[3] = rec.k, rec.z
  if is_after(k, z) and reply[4] == 0 then
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
