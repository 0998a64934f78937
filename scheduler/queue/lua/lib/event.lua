-- Events. A job's stream is a list of them, in the order of their ids (token and seq); its channel gets the same bytes.
local RUNNING_STREAM_MS = 86400000

local function next_token()
  return redis.call('HINCRBY', meta_key, 'token', 1)
end

local function event_json(id, token, seq, kind, attempt, rest)
  return '{"id":"' .. text(token) .. '-' .. seq .. '","type":"' .. kind .. '","job_id":' .. cjson.encode(id)
    .. ',"attempt":' .. text(tonumber(attempt) or 0) .. (rest or '') .. '}'
end

local function queued_json(id) return '{"id":"0-1","type":"queued","job_id":' .. cjson.encode(id) .. ',"attempt":0}' end

-- A script must not fail half-way because it may not publish: readers find the event in the stream, a little later.
local function tell(channel, message) redis.pcall('PUBLISH', channel, message) end

-- Append events[first] to events[last]; the caller makes sure that they are new. A key of another type must not stop a script
-- half-way.
local function emit(id, events, first, last)
  local stream, channel = stream_key(id), channel_key(id)
  for at = first, last, 1000 do redis.pcall('RPUSH', stream, unpack(events, at, at + 999 < last and at + 999 or last)) end
  for at = first, last do redis.pcall('PUBLISH', channel, events[at]) end
end

local function token_and_seq(json)
  local token, seq = string.match(json, '^{"id":"(%d+)-(%d+)"')
  return tonumber(token), tonumber(seq)
end

local function error_json(code, message)
  return '{"code":' .. cjson.encode(code) .. ',"message":' .. cjson.encode(message) .. '}'
end
