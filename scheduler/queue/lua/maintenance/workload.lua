-- Shows autoscalers how much work waits in a lane. Most of them can read only the length of a list, so a list of the lane has one
-- entry for each second of waiting work.
local MOST_WORK_S = 100000
local entries_left = 2000 -- that this call may add

-- How long a job of a lane takes, ms: a mean in which what was known before counts as much as this many jobs.
local JOBS_REMEMBERED = 32
local UNKNOWN_MS = 1000

local function learn_mean_ms(lane)
  local seen = redis.call('HMGET', meta_key, 'ms:' .. lane, 'ran:' .. lane, 'mean:' .. lane)
  local ms, ran, mean = tonumber(seen[1]) or 0, tonumber(seen[2]) or 0, tonumber(seen[3])
  if ran == 0 then return mean or UNKNOWN_MS end
  mean = mean and (mean * JOBS_REMEMBERED + ms) / (JOBS_REMEMBERED + ran) or ms / ran
  redis.call('HDEL', meta_key, 'ms:' .. lane, 'ran:' .. lane)
  redis.call('HSET', meta_key, 'mean:' .. lane, string.format('%.3f', mean))
  return mean
end

local function waiting_in(lane)
  local n = 0
  for _, place in ipairs({ lane, suspects_lane(lane) }) do
    local bits = level_bits(place)
    for p = 0, 9 do
      if has_level(bits, p) then n = n + redis.call('ZCARD', level_key(place, p)) end
    end
  end
  return n
end

local function add_entries(key, n)
  local entries = {}
  for i = 1, math.min(n, entries_left) do entries[i] = '' end
  entries_left = entries_left - #entries
  if #entries > 0 then redis.call('RPUSH', key, unpack(entries)) end
end

local function set_length(key, length)
  local shown = redis.call('LLEN', key)
  if length == 0 then
    if shown > 0 then redis.call('UNLINK', key) end
  elseif length < shown then
    redis.call('LTRIM', key, 0, length - 1)
  elseif length > shown then
    add_entries(key, length - shown)
  end
end

-- A paused lane needs no worker processes.
local function show_work(lane)
  local waiting = redis.call('SISMEMBER', paused_key, lane) == 0 and waiting_in(lane) or 0
  set_length(work_key(lane), math.min(MOST_WORK_S, math.ceil(waiting * learn_mean_ms(lane) / 1000)))
end
