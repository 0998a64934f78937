#!lua flags=allow-oom
-- Maintenance of jobs, by the worker process that holds the lock, in bounded chunks: promote delayed jobs, reap leases, expire,
-- release held jobs, prune lists. tend maintains lanes.
-- KEYS[1] prefix of the queue's keys
-- ARGV[1] worker process  ARGV[2] lock, ms  ARGV[3] lease, ms  ARGV[4] at most this many jobs of each kind
-- ARGV[5] ms since the worker process got the reply to its last tick, by its own clock; '' on its first
-- ARGV[6] 1 if this call confirms one that was answered with 2, else 0
-- ARGV[7] how long the worker process has just been without a Redis that takes writes, ms; 0: it was not, or has reported it
-- ARGV[8] the queue's time in the reply to its last tick, ms; '' on its first
-- returns {leader (1 or 0; 2: nothing was done, call again at once to confirm), next tick in ms, the queue's time at the last tick
--   (0: unknown), 1 if Redis has lost the queue's data since then, promoted, reaped, expired, released, lanes that were woken, ended
--   jobs that were forgotten}
-- error: NEWERFORMAT if a newer version has written the queue
-- @include "lib/clock"
-- @include "lib/argument"
-- @include "lib/format"
-- @include "lib/record"
-- @include "lib/history"
-- @include "lib/level"
-- @include "lib/count"
-- @include "lib/wake"
-- @include "lib/event"
-- @include "lib/many"
-- @include "lib/forget"
-- @include "lib/keeping"
-- @include "lib/spare"
-- @include "lib/alias"
-- @include "lib/conclude"
-- @include "lib/garbage"
-- @include "lib/limit"
-- @include "lib/hold"
-- @include "lib/ready"
-- @include "lib/rank"
-- @include "lib/order"
-- @include "lib/walk"
-- @include "maintenance/clock_jumps"
-- @include "maintenance/outages"
-- @include "maintenance/due"
-- @include "maintenance/promote"
-- @include "lib/waste"
-- @include "maintenance/reap"
-- @include "maintenance/expire"
-- @include "maintenance/release"
-- @include "maintenance/prune"
-- @include "maintenance/throughput"

local IDLE_MS = 250
local SOON_MS = 5

check_format(kept[4])
local worker, lock_ms = named(1), argument(2, 1, MOST_MS)
local lease_ms, chunk = argument(3, 1, MOST_MS), argument(4, 1, MOST_JOBS)
local silent_ms, is_sure, away_ms = whole(ARGV[5], 0, MOST_MS), ARGV[6] == '1', argument(7, 0, MOST_MS)
local known_tick_ms = whole(ARGV[8], 0, MOST_NUMBER)

-- Any worker process reports an outage, whether it holds the lock or not.
local was_away = away_ms > lease_ms / 4
if was_away then excuse_leases(lease_ms) end

-- When the clock has been set back, the lock of a leader that may be dead would last too long.
local leader = redis.call('GET', leader_key)
if leader and leader ~= worker and not is_set_back then
  return { 0, math.max(50, redis.call('PTTL', leader_key)), last_tick_ms or 0, 0, 0, 0, 0, 0, 0, 0 }
end

local meta = redis.call('HMGET', meta_key, 'reap_after', 'sampled', 'excused')
if not keep_time(silent_ms, known_tick_ms, is_sure) then return { 2, 0, 0, 0, 0, 0, 0, 0, 0, 0 } end
redis.call('SET', leader_key, worker, 'PX', text(lock_ms))
local reap_after, excused_until = consider_outages(was_away, lease_ms, tonumber(meta[1]) or 0, tonumber(meta[3]) or 0)
redis.call('HSET', meta_key, 'tick', text(now_ms))

local are_more_to_check = check_all_once_limits_change()
local promoted = promote(chunk)
local reaped = now_ms >= reap_after and reap(chunk, excused_until) or 0
local expired, released = expire(chunk), release(chunk)
local forgotten, are_more_to_forget = prune()
save_ended()
save_counts()
local woken = wake_lanes()
sample_throughput(tonumber(meta[2]) or 0)

-- A leader that ticks less often than twice a lease would look like an outage.
local next_ms = math.min(IDLE_MS, math.floor(lease_ms / 4))
for _, key in ipairs({ delayed_key, limited_key }) do
  local soonest = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
  if soonest[2] then next_ms = math.min(next_ms, math.max(SOON_MS, tonumber(soonest[2]) - now_ms)) end
end
if are_more_to_check or are_more_to_forget or math.max(promoted, reaped, expired, released) >= chunk then next_ms = 0 end
local is_lost = known_tick_ms and not last_tick_ms
return { 1, next_ms, now_ms, is_lost and 1 or 0, promoted, reaped, expired, released, woken, forgotten }
