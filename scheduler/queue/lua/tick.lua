#!lua flags=allow-oom
-- Maintenance, by whichever worker process holds the lock: promote, reap, expire, retain, re-arm. In bounded chunks.
-- KEYS[1] prefix of the queue's keys
-- ARGV[1] worker process  ARGV[2] lock, ms  ARGV[3] lease, ms  ARGV[4] how many jobs of each kind at most
-- ARGV[5] how often the counts and bitmaps are made anew, ms
-- returns {leader (1 or 0), next tick in ms, promoted, reaped, expired, rearmed, retained}
-- @include "lib/clock"
-- @include "lib/record"
-- @include "lib/history"
-- @include "lib/level"
-- @include "lib/count"
-- @include "lib/wake"
-- @include "lib/event"
-- @include "lib/ending"
-- @include "lib/garbage"
-- @include "lib/ready"

local IDLE_MS = 250
local FORGET_AT_ONCE = 5000
local SAMPLES = 7

local worker, lock_ms = ARGV[1], tonumber(ARGV[2])
local lease_ms, chunk, mend_ms = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])

local leader = redis.call('GET', leader_key)
if leader and leader ~= worker then
  return { 0, math.max(50, redis.call('PTTL', leader_key)), 0, 0, 0, 0, 0 }
end
redis.call('SET', leader_key, worker, 'PX', lock_ms)

local meta = redis.call('HMGET', meta_key, 'tick', 'reap_after', 'mended', 'sampled')
local reap_after = tonumber(meta[2] or 0)
if not meta[1] or now_ms - tonumber(meta[1]) > lease_ms / 2 then
  -- After an outage the leases are old for want of Redis, not of workers.
  reap_after = now_ms + lease_ms
  redis.call('HSET', meta_key, 'reap_after', text(reap_after))
end
redis.call('HSET', meta_key, 'tick', text(now_ms))

local function due(key) return redis.call('ZRANGEBYSCORE', key, '-inf', text(now_ms), 'LIMIT', 0, chunk) end

local function promote()
  local ids = due(delayed_key)
  for _, id in ipairs(ids) do
    local rec = read(id, 's', 'q', unpack(ENDING))
    redis.call('ZREM', delayed_key, id)
    if sound(rec) and rec.q and rec.s == 'delayed' then
      redis.call('HDEL', record_key(id), 'u')
      make_ready(id, rec)
    else
      if rec and rec.l then count_waiting(rec.l, -1) else add('n', -1) end
      set_aside(id, rec, 'delayed')
    end
  end
  return #ids
end

local LOST = 'the worker process that ran it did not renew its lease'

local function give_back(id, rec)
  redis.call('HINCRBY', record_key(id), 'o', 1)
  local token = next_token()
  redis.call('HSET', record_key(id), 'k', text(token))
  local rest = ',"error":' .. error_json('lease_lost', LOST) .. ',"delay_s":0'
  emit(id, text(token), 1, event_json(id, token, 1, 'retrying', rec.n, rest))
  redis.call('PEXPIRE', stream_key(id), RUNNING_STREAM_MS)
  remember(id, rec.y, 'lease_lost', rec.w, rec.n)
  make_ready(id, rec)
  count_waiting(rec.l, 1)
  add('t:lost', 1)
end

local function reap()
  if now_ms < reap_after then return 0 end
  local ids = due(leases_key)
  for _, id in ipairs(ids) do
    local rec = read(id, 's', 'q', 'o', 'w', 'y', unpack(ENDING))
    redis.call('ZREM', leases_key, id)
    if not (sound(rec) and rec.q and rec.s == 'running') then
      set_aside(id, rec, 'running')
    elseif rec.x and tonumber(rec.x) <= now_ms then
      end_job(id, rec, 'expired', 'deadline')
    else
      give_back(id, rec)
    end
  end
  return #ids
end

local function expire()
  local ids = due(deadlines_key)
  for _, id in ipairs(ids) do
    local rec = read(id, unpack(ENDING))
    redis.call('ZREM', deadlines_key, id)
    if sound(rec) and (rec.s == 'waiting' or rec.s == 'delayed') then end_job(id, rec, 'expired', 'deadline') end
  end
  return #ids
end

local function drop_old(key)
  local n = math.min(FORGET_AT_ONCE, redis.call('ZCOUNT', key, '-inf', text(now_ms)))
  return n > 0 and redis.call('ZREMRANGEBYRANK', key, 0, n - 1) or 0
end

-- Records of ended jobs go by themselves; what lists them is kept short here.
local function forget()
  local max_dead = tonumber(redis.call('HGET', conf_key, 'max_dead') or 10000)
  local gone = drop_old(finished_key) + drop_old(dead_key)
  redis.call('ZREMRANGEBYSCORE', workers_key, '-inf', text(now_ms))
  local over = redis.call('ZCARD', dead_key) - max_dead
  if over > 0 then
    for _, id in ipairs(redis.call('ZRANGE', dead_key, 0, math.min(over, chunk) - 1)) do
      redis.call('ZREM', dead_key, id)
      redis.call('DEL', record_key(id), payload_key(id), result_key(id), tickets_key(id), stream_key(id))
      gone = gone + 1
    end
  end
  return gone
end

-- Make the level bitmaps and the counts anew from what is there, and put back lost wake tokens.
local function mend()
  local total, delayed = 0, redis.call('ZCARD', delayed_key)
  for _, lane in ipairs(redis.call('SMEMBERS', lanes_key)) do
    local waiting, bits = 0, 0
    for p = 0, 9 do
      local n = redis.call('ZCARD', level_key(lane, p))
      waiting = waiting + n
      if n > 0 then bits = bits + 2 ^ p end
    end
    bitmaps[lane] = bits
    redis.call('HSET', meta_key, 'b:' .. lane, text(bits))
    if delayed == 0 then redis.call('HSET', meta_key, 'n:' .. lane, text(waiting)) end
    total = total + waiting
  end
  redis.call('HSET', meta_key, 'n', text(total + delayed), 'mended', text(now_ms))
end

local function rearm()
  local woken = 0
  for _, lane in ipairs(redis.call('SMEMBERS', lanes_key)) do
    if level_bits(lane) > 0 and wake(lane) then woken = woken + 1 end
  end
  return woken
end

-- The rate at which jobs end, over the last minute.
local function sample()
  local totals = redis.call('HMGET', meta_key, 't:done', 't:failed', 't:cancelled', 't:expired', 't:shed')
  local ended = 0
  for i = 1, 5 do ended = ended + tonumber(totals[i] or 0) end
  local first = redis.call('LINDEX', samples_key, -1)
  if first then
    local at, count = string.match(first, '(%d+) (%d+)')
    local rate = (ended - tonumber(count)) / math.max(0.001, (now_ms - tonumber(at)) / 1000)
    redis.call('HSET', meta_key, 'rate', string.format('%.3f', rate))
  end
  redis.call('LPUSH', samples_key, text(now_ms) .. ' ' .. text(ended))
  redis.call('LTRIM', samples_key, 0, SAMPLES - 1)
  redis.call('HSET', meta_key, 'sampled', text(now_ms))
end

local promoted, reaped, expired = promote(), reap(), expire()
local retained = forget()
save_counts()
if now_ms - tonumber(meta[3] or 0) >= mend_ms then mend() end
local rearmed = rearm()
if now_ms - tonumber(meta[4] or 0) >= 10000 then sample() end

-- A leader that ticks less often than twice a lease would look like an outage.
local next_ms = math.min(IDLE_MS, math.floor(lease_ms / 4))
local soonest = redis.call('ZRANGE', delayed_key, 0, 0, 'WITHSCORES')
if soonest[2] then next_ms = math.min(next_ms, math.max(0, tonumber(soonest[2]) - now_ms)) end
if promoted == chunk or reaped == chunk or expired == chunk or retained >= FORGET_AT_ONCE then next_ms = 0 end
return { 1, next_ms, promoted, reaped, expired, rearmed, retained }
