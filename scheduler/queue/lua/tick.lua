#!lua flags=allow-oom
-- Maintenance of jobs, by whichever worker process holds the lock: promote, reap, expire, release, forget. In bounded chunks;
-- tend does that of the lanes.
-- KEYS[1] prefix of the queue's keys
-- ARGV[1] worker process  ARGV[2] lock, ms  ARGV[3] lease, ms  ARGV[4] how many jobs of each kind at most
-- ARGV[5] how long ago, by its own clock, the worker process has had the reply to its last call of this, ms; '' at the first
-- ARGV[6] 1 if it has just been asked to make sure of that, else 0
-- ARGV[7] for how long Redis has just been away for this process, or taken no writes, ms; 0: it has told of that, or was never
-- returns {leader (1 or 0; 2: nothing was done, call again at once to make sure), next tick in ms, promoted, reaped, expired, released,
--   lanes that were woken, ended jobs that were forgotten}
-- @include "lib/clock"
-- error: NEWERFORMAT, where a newer version has written the queue
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

local IDLE_MS = 250
local GAP_MS = 1000 -- between two ticks, where there is somebody to tick, and a Redis
local SOON_MS = 5
local FORGET_AT_ONCE, FORGET_JOBS = 1000, 250
local LOOKS_AT_ONCE = 200
local SAMPLES = 7

check_format(kept[4])
local worker, lock_ms = named(1), argument(2, 1, MOST_MS)
local lease_ms, chunk = argument(3, 1, MOST_MS), argument(4, 1, MOST_JOBS)
local silent_ms, is_sure, away_ms = whole(ARGV[5], 0, MOST_MS), ARGV[6] == '1', argument(7, 0, MOST_MS)

-- Whoever lived through an outage tells of it: a lease that has not been renewed since says nothing of the job.
local was_away = away_ms > lease_ms / 4
if was_away then redis.call('HSET', meta_key, 'excused', text(now_ms + lease_ms)) end

-- A clock that was put back leaves the lock of a leader that may be dead for as long.
local JUMP_BACK_MS, JUMP_ON_MS = 1000, 5000
local put_back = behind_us > 1000 * JUMP_BACK_MS
local leader = redis.call('GET', leader_key)
if leader and leader ~= worker and not put_back then
  return { 0, math.max(50, redis.call('PTTL', leader_key)), 0, 0, 0, 0, 0, 0 }
end

local meta = redis.call('HMGET', meta_key, 'reap_after', 'sampled', 'excused')

-- The queue's clock goes on as it did where Redis' own is put back, or is put forward while there are ticks: then far more time
-- has gone since the last one than for this process. A call that was long on its way looks the same: it is to be made again.
local function keep_time()
  if put_back then redis.call('HINCRBY', meta_key, 'ahead', text(math.floor(behind_us / 1000))) end
  local jump_ms = last_tick_ms and silent_ms and now_ms - last_tick_ms - silent_ms or 0
  if jump_ms < JUMP_ON_MS then return true end
  if not is_sure then return false end
  redis.call('HINCRBY', meta_key, 'ahead', text(-jump_ms))
  now_ms, now_us = now_ms - jump_ms, now_us - 1000 * jump_ms
  return true
end

if not keep_time() then return { 2, 0, 0, 0, 0, 0, 0, 0 } end
redis.call('SET', leader_key, worker, 'PX', text(lock_ms))

local reap_after, excused_until = tonumber(meta[1]) or 0, tonumber(meta[3]) or 0
local gap_ms = last_tick_ms and now_ms - last_tick_ms

-- What Redis itself knows of an outage that no worker process may have lived through: that it was started since the last tick, or
-- has refused commands since this was last asked.
local REFUSALS = { 'READONLY', 'NOREPLICAS', 'MISCONF', 'BUSY', 'LOADING', 'MASTERDOWN', 'CLUSTERDOWN' }
local function redis_was_at_fault()
  local info = redis.pcall('INFO', 'server', 'errorstats')
  if type(info) ~= 'string' then return false end
  local refusals, uptime_s = 0, tonumber(string.match(info, 'uptime_in_seconds:(%d+)'))
  for _, code in ipairs(REFUSALS) do
    refusals = refusals + (tonumber(string.match(info, 'errorstat_' .. code .. ':count=(%d+)')) or 0)
  end
  local before = tonumber(redis.call('HGET', meta_key, 'refusals')) or refusals
  redis.call('HSET', meta_key, 'refusals', text(refusals))
  return refusals > before or (gap_ms and uptime_s and 1000 * uptime_s < gap_ms)
end

if (not gap_ms or gap_ms > GAP_MS) and redis_was_at_fault() then
  excused_until = now_ms + lease_ms
  redis.call('HSET', meta_key, 'excused', text(excused_until))
end
if was_away or not gap_ms or gap_ms > lease_ms / 2 then
  -- After an outage the leases are old for want of Redis, not of workers.
  reap_after = now_ms + lease_ms
  redis.call('HSET', meta_key, 'reap_after', text(reap_after))
end
redis.call('HSET', meta_key, 'tick', text(now_ms))

local function due(key) return redis.call('ZRANGEBYSCORE', key, '-inf', text(now_ms), 'LIMIT', 0, chunk) end

-- Lanes that have got work in this call.
local to_wake = {}

local function ready_again(id, rec)
  make_ready(id, rec)
  if rec.s == 'waiting' then to_wake[rec.l] = true end
end

local function promote()
  local ids = due(delayed_key)
  for _, id in ipairs(ids) do
    local rec = read(id, { 's', 'q', unpack(ENDING) })
    redis.call('ZREM', delayed_key, id)
    if sound(rec) and rec.q and rec.s == 'delayed' then
      redis.call('HDEL', record_key(id), 'u')
      ready_again(id, rec)
    else
      if rec and rec.l then count_waiting(rec.l, -1) else add('n', -1) end
      set_aside(id, rec, 'delayed')
    end
  end
  return #ids
end

local LOST = 'the worker process that ran it did not renew its lease'
local POISON = 'it has lost its worker process %d times, at last as the only suspect that ran there'

-- What a lost attempt has cost an engine for nothing, as far as can be told: the request, and what was streamed of the
-- answer, of which the last entries are looked at: so many of a job, and so many in a tick.
local WASTE_ENTRIES, waste_entries_left = 256, 512
local function count_waste(id, token)
  local most = math.max(1, math.min(WASTE_ENTRIES, waste_entries_left))
  local events = token and redis.pcall('LRANGE', stream_key(id), -most, -1) or {}
  if events.err then return end
  waste_entries_left = waste_entries_left - #events
  local bytes, found = request_bytes(id), false
  for _, json in ipairs(events) do
    if token_and_seq(json) == tonumber(token) then
      found = true
      local readable, event = pcall(cjson.decode, json)
      if readable and type(event) == 'table' and type(event.text) == 'string' then bytes = bytes + #event.text end
    end
  end
  if not found then return end
  add('t:repeated', 1)
  add('t:wasted_tokens', estimate_tokens(bytes))
end

local function give_back(id, rec, excused)
  if not excused then rec.o = redis.call('HINCRBY', record_key(id), 'o', 1) end
  local token = next_token()
  redis.call('HSET', record_key(id), 'k', text(token))
  local rest = ',"error":' .. error_json('lease_lost', LOST) .. ',"delay_s":0'
  emit(id, { event_json(id, token, 1, 'retrying', rec.n, rest) }, 1, 1)
  redis.call('PEXPIRE', stream_key(id), RUNNING_STREAM_MS)
  remember(id, rec.y, 'lease_lost', rec.w, rec.n)
  ready_again(id, rec)
  count_waiting(rec.l, 1)
  add('t:lost', 1)
end

-- excused: the lease ended for want of Redis, and its worker process need not have died of the job.
local function lose(id, rec, excused)
  count_waste(id, rec.k)
  if rec.x and tonumber(rec.x) <= now_ms then
    end_job(id, rec, 'expired', 'deadline')
  elseif is_suspect(rec) and not excused then
    -- No other suspect ran in its process: see claim.
    rec.o = redis.call('HINCRBY', record_key(id), 'o', 1)
    add('t:lost', 1)
    add('t:quarantined', 1)
    end_job(id, rec, 'failed', 'poison', error_json('poison', string.format(POISON, rec.o)))
  else
    give_back(id, rec, excused)
  end
end

local function reap()
  if now_ms < reap_after then return 0 end
  local ids = due(leases_key)
  for _, id in ipairs(ids) do
    local rec, lease_end = read(id, { 's', 'q', 'w', 'y', unpack(ENDING) }), redis.call('ZSCORE', leases_key, id)
    redis.call('ZREM', leases_key, id)
    if sound(rec) and rec.q and rec.s == 'running' then
      lose(id, rec, tonumber(lease_end) < excused_until)
    elseif not (sound(rec) and ENDED[rec.s]) then
      set_aside(id, rec, 'running')
    end
  end
  return #ids
end

local function expire()
  local ids = due(deadlines_key)
  for _, id in ipairs(ids) do
    local rec = read(id, ENDING)
    redis.call('ZREM', deadlines_key, id)
    if sound(rec) and rec.s ~= 'running' and not ENDED[rec.s] then end_job(id, rec, 'expired', 'deadline') end
  end
  return #ids
end

-- The level and rank of the last job that was released of a held lane, while it waits for a worker process.
local function last_released(held)
  local id = redis.call('HGET', released_key, held)
  local rec = id and read(id, { 's', 'p', 'l', 'q' })
  if not (sound(rec) and rec.q and rec.s == 'waiting') then return nil end
  local p = tonumber(rec.p)
  return { p = p, rank = rec.q + handicap_of(p) }
end

local function release_job(id, held)
  local rec = read(id, { 's', 'q', unpack(ENDING) })
  if sound(rec) and rec.q and rec.s == 'held' and place_of(rec) == held then
    redis.call('HSET', record_key(id), 's', 'waiting')
    rec.s = 'waiting'
    enter_level(place_of(rec), rec.p, id, tonumber(rec.q))
  else
    count_waiting(lane_of(held), -1)
    set_aside(id, rec, 'held')
  end
end

-- The more held lanes there are that only workers can free, the less often each is looked at.
local STUCK_A_LOOK = 100
local function stuck_ms() return IDLE_MS * math.ceil(redis.call('ZCARD', limited_key) / STUCK_A_LOOK) end

-- Say when to look at a held lane again.
local function look_again(held, gate, stuck)
  if level_bits(held) == 0 then
    redis.call('ZREM', limited_key, held)
  elseif gate and not gate.passable() then
    redis.call('ZADD', limited_key, gate.passable_at_ms(), held)
  else
    redis.call('ZADD', limited_key, text(now_ms + (stuck and stuck_ms() or 0)), held)
  end
end

-- Release as many jobs of a tenant as it may begin now, in the order of claiming over its lanes. Returns how many.
local function release_tenant(tenant, lanes, at_most)
  local gate, cursors, last = tenant_gate(tenant), {}, {}
  for _, held in ipairs(lanes) do
    open_cursors(cursors, { name = held }, level_bits(held))
    last[held] = gate and last_released(held)
  end
  -- While those released before wait for a worker process, only who is more urgent goes after them.
  local stuck = {}
  local function outranks(cursor)
    local other = last[cursor.place.name]
    if not other then return true end
    local strict = is_strict(cursor.p) or is_strict(other.p)
    if strict and cursor.p > other.p then return true end
    if (cursor.p == other.p or not strict) and (rank_of(cursor) or math.huge) < other.rank then return true end
    stuck[cursor.place.name] = true
    return false
  end
  local order, released, newest = make_order(cursors, at_most), {}, {}
  while #released < at_most and (not gate or gate.passable()) do
    local cursor = best(order, outranks)
    if not cursor then break end
    local job = { held = cursor.place.name, id = pick(cursor) }
    released[#released + 1], newest[job.held] = job, job.id
    -- Reckoned with here, and saved nowhere: claim charges for good.
    if gate then gate.charge(estimate_tokens(request_bytes(job.id))) end
  end
  leave_picked(cursors)
  for _, job in ipairs(released) do release_job(job.id, job.held) end
  for _, held in ipairs(lanes) do
    look_again(held, gate, stuck[held])
    if newest[held] then
      wake(lane_of(held))
      if level_bits(held) > 0 then redis.call('HSET', released_key, held, newest[held]) end
    end
  end
  return #released
end

-- Under other limits held jobs may have to wait no more. Returns whether there are more lanes to look at for that.
local function look_at_all()
  local place = redis.call('HGET', meta_key, 'limits changed')
  if not place then return false end
  local held, next_place = walk('ZSCAN', limited_key, place, LOOKS_AT_ONCE)
  for i = 1, #held, 2 do redis.call('ZADD', limited_key, 'XX', 0, held[i]) end
  if next_place then
    redis.call('HSET', meta_key, 'limits changed', next_place)
  else
    redis.call('HDEL', meta_key, 'limits changed')
  end
  return next_place
end

local function release()
  local tenants, lanes, n = {}, {}, 0
  for _, held in ipairs(due(limited_key)) do
    local tenant = string.match(held, '%S+$')
    if not lanes[tenant] then
      tenants[#tenants + 1], lanes[tenant] = tenant, {}
    end
    table.insert(lanes[tenant], held)
  end
  for _, tenant in ipairs(tenants) do
    if n < chunk then n = n + release_tenant(tenant, lanes[tenant], chunk - n) end
  end
  return n
end

local function drop_old(key)
  local n = math.min(FORGET_AT_ONCE, redis.call('ZCOUNT', key, '-inf', text(now_ms)))
  return n > 0 and redis.call('ZREMRANGEBYRANK', key, 0, n - 1) or 0
end

-- Records of ended jobs go by themselves; what lists them is kept short here.
local function forget_old()
  local gone = drop_old(finished_key) + drop_old(dead_key)
  gone = gone + bound_dead(keeping().max_dead, FORGET_JOBS) + bound_finished(keeping().max_finished, FORGET_JOBS)
  redis.call('ZREMRANGEBYSCORE', workers_key, '-inf', text(now_ms))
  return gone
end

-- The rate at which jobs end, over the last minute.
local function sample()
  local totals = redis.call('HMGET', meta_key, 't:done', 't:failed', 't:cancelled', 't:expired', 't:shed')
  local ended = 0
  for i = 1, 5 do ended = ended + (tonumber(totals[i]) or 0) end
  local first = redis.call('LINDEX', samples_key, -1)
  local at, count = string.match(first or '', '(%d+) (%d+)')
  if at then
    local rate = (ended - tonumber(count)) / math.max(0.001, (now_ms - tonumber(at)) / 1000)
    redis.call('HSET', meta_key, 'rate', string.format('%.3f', rate))
  end
  redis.call('LPUSH', samples_key, text(now_ms) .. ' ' .. text(ended))
  redis.call('LTRIM', samples_key, 0, SAMPLES - 1)
  redis.call('HSET', meta_key, 'sampled', text(now_ms))
end

local more_to_look_at = look_at_all()
local promoted, reaped, expired, released = promote(), reap(), expire(), release()
local forgotten = forget_old()
save_ended()
save_counts()
local rearmed = 0
for lane in pairs(to_wake) do
  if wake(lane) then rearmed = rearmed + 1 end
end
if now_ms - (tonumber(meta[2]) or 0) >= 10000 then sample() end

-- A leader that ticks less often than twice a lease would look like an outage.
local next_ms = math.min(IDLE_MS, math.floor(lease_ms / 4))
for _, key in ipairs({ delayed_key, limited_key }) do
  local soonest = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
  if soonest[2] then next_ms = math.min(next_ms, math.max(SOON_MS, tonumber(soonest[2]) - now_ms)) end
end
if more_to_look_at or math.max(promoted, reaped, expired, released) >= chunk or forgotten >= FORGET_JOBS then next_ms = 0 end
return { 1, next_ms, promoted, reaped, expired, released, rearmed, forgotten }
