-- Events: an explicit id makes a repeated write harmless; the stream and the channel get the same bytes.
local RUNNING_STREAM_MS = 86400000

local function next_token()
  return redis.call('HINCRBY', meta_key, 'token', 1)
end

local function event_json(id, token, seq, kind, attempt, rest)
  return '{"id":"' .. text(token) .. '-' .. seq .. '","type":"' .. kind .. '","job_id":' .. cjson.encode(id)
    .. ',"attempt":' .. text(tonumber(attempt) or 0) .. (rest or '') .. '}'
end

-- Without the right to publish a script must not fail half-way: readers find it in the stream, if later.
local function tell(channel, message) redis.pcall('PUBLISH', channel, message) end

local function emit(id, token, seq, json)
  local added = redis.pcall('XADD', stream_key(id), token .. '-' .. seq, 'e', json)
  -- An error here means that the id is there already: this write is being repeated.
  if type(added) == 'table' and added.err then return end
  tell(channel_key(id), json)
end

local function error_json(code, message)
  return '{"code":' .. cjson.encode(code) .. ',"message":' .. cjson.encode(message) .. '}'
end
