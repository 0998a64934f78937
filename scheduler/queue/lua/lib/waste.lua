-- Estimates the engine work wasted by an attempt without an end: the tokens of its request and of the answer it had streamed. Only
-- the last events of a job are read, and a bounded number of events in a call.
local EVENTS_READ_A_JOB = 256
local events_left = 512

-- is_lost: nobody knows whether an engine was called, so an attempt that has started counts without any text.
local function count_waste(id, token, is_lost)
  local most = math.max(1, math.min(EVENTS_READ_A_JOB, events_left))
  local events = token and redis.pcall('LRANGE', stream_key(id), -most, -1) or {}
  if events.err then return end
  events_left = events_left - #events
  local bytes, is_begun = request_bytes(id), false
  for _, json in ipairs(events) do
    if token_and_seq(json) == tonumber(token) then
      is_begun = is_begun or is_lost
      local is_readable, event = pcall(cjson.decode, json)
      if is_readable and type(event) == 'table' and type(event.text) == 'string' then
        bytes, is_begun = bytes + #event.text, true
      end
    end
  end
  if not is_begun then return end
  add('t:repeated', 1)
  add('t:wasted_tokens', estimate_tokens(bytes))
end
