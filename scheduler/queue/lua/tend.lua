#!lua flags=allow-oom
-- The maintenance of lanes, by the worker process that holds the lock: put back lost wake tokens, say how much work there is, mend
-- counts and bitmaps, forget lanes that nobody uses. Lanes come in rounds, some of them a call; so do the places beside them.
-- KEYS[1] prefix of the queue's keys
-- ARGV[1] worker process  ARGV[2] how often counts and bitmaps are made anew, ms
-- returns {next call in ms, lanes that were woken}
-- @include "lib/clock"
-- @include "lib/argument"
-- @include "lib/record"
-- @include "lib/level"
-- @include "lib/wake"
-- @include "lib/walk"
-- @include "lib/mend"

local IDLE_MS, UNDER_WAY_MS = 250, 50
local WORK_MS = 1000
local LANES_A_CALL = 32

local worker, mend_ms = named(1), argument(2, 0, MOST_MS)
if redis.call('GET', leader_key) ~= worker then return { IDLE_MS, 0 } end

local function rearm(lane)
  local waits = level_bits(lane) > 0 or level_bits(suspects_lane(lane)) > 0
  return waits and wake(lane)
end

-- How long a job of a lane keeps a place, ms: the mean that was known counts as so many jobs beside those that have ended.
local JOBS_REMEMBERED, UNKNOWN_MS = 32, 1000

local function learn_mean(lane)
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

-- Autoscalers read the length of a list, and nothing else: one entry a second of waiting work.
local MOST_WORK_S = 100000
local entries_left = 2000 -- in this call

local function add_entries(key, n)
  local entries = {}
  for i = 1, math.min(n, entries_left) do entries[i] = '' end
  entries_left = entries_left - #entries
  if #entries > 0 then redis.call('RPUSH', key, unpack(entries)) end
end

local function show_work(lane, work_s)
  local shown = redis.call('LLEN', work_key(lane))
  if work_s == 0 then
    if shown > 0 then redis.call('UNLINK', work_key(lane)) end
  elseif work_s < shown then
    redis.call('LTRIM', work_key(lane), 0, work_s - 1)
  elseif work_s > shown then
    add_entries(work_key(lane), work_s - shown)
  end
end

-- A paused lane has no work for anybody.
local function work(lane)
  local waiting = redis.call('SISMEMBER', paused_key, lane) == 0 and waiting_in(lane) or 0
  local work_s = math.ceil(waiting * learn_mean(lane) / 1000)
  show_work(lane, math.min(MOST_WORK_S, work_s))
end

-- A lane that nobody serves, that has no jobs and is not paused comes back with its next job.
local forgotten = 0

local function forget_unused(lane)
  if level_bits(lane) > 0 or level_bits(suspects_lane(lane)) > 0 then return end
  if (tonumber(redis.call('HGET', meta_key, 'n:' .. lane)) or 0) ~= 0 then return end
  if redis.call('HEXISTS', routes_key, lane) == 1 or redis.call('SISMEMBER', paused_key, lane) == 1 then return end
  redis.call('SREM', lanes_key, lane)
  redis.call('HDEL', meta_key, 'b:' .. lane, 'n:' .. lane, 'ms:' .. lane, 'ran:' .. lane, 'mean:' .. lane)
  redis.call('UNLINK', wake_key(lane), urgent_key(lane), work_key(lane))
  forgotten = forgotten + 1
end

-- The bitmaps of these lanes and of their suspects, in two commands.
local function read_bits(lanes)
  local fields, suspects = {}, {}
  for i, lane in ipairs(lanes) do fields[i], suspects[i] = 'b:' .. lane, suspects_lane(lane) end
  local of_lanes, of_suspects = redis.call('HMGET', meta_key, unpack(fields)), redis.call('HMGET', beside_key, unpack(suspects))
  for i, lane in ipairs(lanes) do
    bitmaps[lane] = tonumber(of_lanes[i] or 0)
    bitmaps[suspects[i]] = tonumber(of_suspects[i] or 0)
  end
end

-- The places beside the lanes: those with a bitmap, and those that are listed as held. begin: whether to begin anew where the
-- last walk is over. Returns whether it goes on.
local function look_after_places(begin)
  local under_way = redis.call('HMGET', meta_key, 'beside at', 'limited at')
  local function go_on(command, key, field, place)
    if not (place or begin) then return false end
    local members, next_place = walk(command, key, place, LANES_A_CALL)
    local size = command == 'HSCAN' and 'HLEN' or 'ZCARD'
    local before = #members > 0 and redis.call(size, key)
    for i = 1, #members, 2 do mend_place(members[i]) end
    if next_place then
      redis.call('HSET', meta_key, field, place_after(next_place, before - redis.call(size, key)))
    elseif place then
      redis.call('HDEL', meta_key, field)
    end
    return next_place
  end
  local beside = go_on('HSCAN', beside_key, 'beside at', under_way[1])
  return go_on('ZSCAN', limited_key, 'limited at', under_way[2]) or beside
end

-- A round mends and shows the work of all lanes, or does not, as is due at its beginning.
local state = redis.call('HMGET', meta_key, 'round', 'worked', 'mended')
local shows, mends, place = string.match(state[1] or '', '^(%d) (%d) (.+)$')
local work_is_due, mend_is_due = shows == '1', mends == '1'
if not place then
  work_is_due = now_ms - (tonumber(state[2]) or 0) >= WORK_MS
  mend_is_due = now_ms - (tonumber(state[3]) or 0) >= mend_ms
  if mend_is_due and redis.call('HEXISTS', meta_key, 'suspects') == 1 then
    redis.call('HSET', meta_key, 'suspects', '0') -- it is 1 again, should there be some
  end
end
local more_places = look_after_places(mend_is_due and not place)

local lanes, next_place = walk('SSCAN', lanes_key, place, LANES_A_CALL)
if #lanes > 0 then read_bits(lanes) end
local unclaimed, woken = mend_is_due and unclaimed_by_lane(), 0
for _, lane in ipairs(lanes) do
  if mend_is_due then mend_lane(lane, unclaimed) end
  if rearm(lane) then woken = woken + 1 end
  if work_is_due then work(lane) end
  if mend_is_due then forget_unused(lane) end
end
if next_place then
  next_place = place_after(next_place, forgotten)
  redis.call('HSET', meta_key, 'round', (work_is_due and '1 ' or '0 ') .. (mend_is_due and '1 ' or '0 ') .. next_place)
  return { UNDER_WAY_MS, woken }
end
if place then redis.call('HDEL', meta_key, 'round') end
if work_is_due then redis.call('HSET', meta_key, 'worked', text(now_ms)) end
if mend_is_due then
  if redis.call('HGET', meta_key, 'suspects') == '0' then redis.call('HDEL', meta_key, 'suspects') end
  mend_count_of_all()
  redis.call('HSET', meta_key, 'mended', text(now_ms))
end
return { more_places and UNDER_WAY_MS or IDLE_MS, woken }
