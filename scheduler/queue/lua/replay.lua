#!lua flags=no-writes
-- Read a job's state and its events after a cursor.
-- KEYS[1] prefix of the queue's keys
-- ARGV[1] job  ARGV[2] token and ARGV[3] seq of the last event seen, 0 and 0 at first  ARGV[4] how many at most
-- returns {} for an unknown job, else {state, token of the last event, its seq, more, event JSON, …}
--   more: 1 there are more events | 0 there are no more | 2 no more, and the last one is in two parts: up to its result, the result
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

-- The index of the first event after the cursor: events are in the order of their ids.
local function after_cursor()
  local low, high = 0, length
  if token == 0 and seq == 0 then return 0 end
  while low < high do
    local middle = math.floor((low + high) / 2)
    if is_after(id_at(middle)) then high = middle else low = middle + 1 end
  end
  return low
end

-- Bounds of a reply. Events differ in size by a factor of a thousand, and Lua takes milliseconds to copy more.
local PAGE_BYTES, FIRST_SLICE, LARGE_RESULT = 1048576, 16, 65536

local first = after_cursor()
local reply = { rec.s, '0', '1', 0 }
if token == 0 and seq == 0 then reply[5] = queued_json(id) end
local at, bytes, slice = first, 0, FIRST_SLICE
while at < length and at - first < limit and bytes < PAGE_BYTES do
  local events = redis.call('LRANGE', stream, at, math.min(at + slice, first + limit) - 1)
  for i = 1, #events do
    reply[#reply + 1] = events[i]
    bytes = bytes + #events[i]
  end
  at, slice = at + #events, 2 * slice
end
if at < length then reply[4] = 1 end
if length > 0 then
  local last_token, last_seq = id_at(-1)
  if last_token then reply[2], reply[3] = text(last_token), text(last_seq) end
end

-- The terminal event is in no stream, so it is made from the record.
local k, z = tonumber(rec.k), tonumber(rec.z)
if ENDED[rec.s] and k and z then
  reply[2], reply[3] = rec.k, rec.z
  if is_after(k, z) and reply[4] == 0 then
    local rest = ',"reason":' .. cjson.encode(rec.r or rec.s)
    if rec.s == 'done' then
      local result = redis.call('GET', result_key(id)) or '{"text":""}'
      if #result > LARGE_RESULT then
        reply[4], reply[#reply + 1] = 2, string.sub(event_json(id, k, rec.z, rec.s, rec.n, ',"result":'), 1, -2)
        reply[#reply + 1] = result
        return reply
      end
      rest = ',"result":' .. result
    elseif rec.s == 'failed' then
      rest = ',"error":' .. (rec.i or error_json(rec.r or 'unknown', 'no more is known'))
    end
    reply[#reply + 1] = event_json(id, k, rec.z, rec.s, rec.n, rest)
  end
end
return reply
