#!lua flags=allow-oom
-- Maintenance of lanes, by the worker process that holds the lock: put back lost wake tokens, show the waiting work, correct
-- counts and bitmaps, forget unused lanes. A round over all lanes takes several calls; so does one over the places beside them.
-- KEYS[1] prefix of the queue's keys
-- ARGV[1] worker process  ARGV[2] how often to correct counts and bitmaps, ms
-- returns {next call in ms, lanes that were woken}
-- @include "lib/clock"
-- @include "lib/argument"
-- @include "lib/record"
-- @include "lib/level"
-- @include "lib/wake"
-- @include "lib/walk"
-- @include "lib/mend"
-- @include "maintenance/workload"
-- @include "maintenance/unused_lanes"
-- @include "maintenance/places_beside"

local IDLE_MS = 250
local UNDER_WAY_MS = 50
local WORK_MS = 1000
local LANES_A_CALL = 32

local worker, mend_ms = named(1), argument(2, 0, MOST_MS)
if redis.call('GET', leader_key) ~= worker then return { IDLE_MS, 0 } end

local function rearm(lane)
  local waits = level_bits(lane) > 0 or level_bits(suspects_lane(lane)) > 0
  return waits and wake(lane)
end

-- Read the bitmaps of these lanes and of their suspects, in two commands.
local function read_bits(lanes)
  local fields, suspects = {}, {}
  for i, lane in ipairs(lanes) do fields[i], suspects[i] = 'b:' .. lane, suspects_lane(lane) end
  local of_lanes, of_suspects = redis.call('HMGET', meta_key, unpack(fields)), redis.call('HMGET', beside_key, unpack(suspects))
  for i, lane in ipairs(lanes) do
    bitmaps[lane] = tonumber(of_lanes[i] or 0)
    bitmaps[suspects[i]] = tonumber(of_suspects[i] or 0)
  end
end

-- A round treats all lanes alike: what is due is decided at its beginning.
local state = redis.call('HMGET', meta_key, 'round', 'worked', 'mended')
local shows, mends, bookmark = string.match(state[1] or '', '^(%d) (%d) (.+)$')
local work_is_due, mend_is_due = shows == '1', mends == '1'
if not bookmark then
  work_is_due = now_ms - (tonumber(state[2]) or 0) >= WORK_MS
  mend_is_due = now_ms - (tonumber(state[3]) or 0) >= mend_ms
  if mend_is_due and redis.call('HEXISTS', meta_key, 'suspects') == 1 then
    redis.call('HSET', meta_key, 'suspects', '0') -- mend_place sets it to 1 if there are any
  end
end
local more_places = mend_places_beside(mend_is_due and not bookmark, LANES_A_CALL)

local lanes, next_bookmark = walk('SSCAN', lanes_key, bookmark, LANES_A_CALL)
if #lanes > 0 then read_bits(lanes) end
local unclaimed, woken, forgotten = mend_is_due and unclaimed_by_lane(), 0, 0
for _, lane in ipairs(lanes) do
  if mend_is_due then mend_lane(lane, unclaimed) end
  if rearm(lane) then woken = woken + 1 end
  if work_is_due then show_work(lane) end
  if mend_is_due and forget_if_unused(lane) then forgotten = forgotten + 1 end
end
if next_bookmark then
  next_bookmark = bookmark_after(next_bookmark, forgotten)
  redis.call('HSET', meta_key, 'round', (work_is_due and '1 ' or '0 ') .. (mend_is_due and '1 ' or '0 ') .. next_bookmark)
  return { UNDER_WAY_MS, woken }
end
if bookmark then redis.call('HDEL', meta_key, 'round') end
if work_is_due then redis.call('HSET', meta_key, 'worked', text(now_ms)) end
if mend_is_due then
  if redis.call('HGET', meta_key, 'suspects') == '0' then redis.call('HDEL', meta_key, 'suspects') end
  mend_count_of_all()
  redis.call('HSET', meta_key, 'mended', text(now_ms))
end
return { more_places and UNDER_WAY_MS or IDLE_MS, woken }
