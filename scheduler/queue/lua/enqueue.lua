#!lua
-- Put jobs into their lanes, or join, reuse or replace the jobs that own their dedup keys. May be repeated.
-- KEYS[1] prefix of the queue's keys
-- ARGV[1] number of jobs, at most 128; then 12 a job, '' for what is not set:
--   id, lane, priority, tenant, payload, dedup hash, content hash, dedup mode, deadline (ms from now),
--   delay (ms), max_attempts, result ttl (ms)
--   payload '': it is large, and stands in its staged key
-- returns for each job, or for the first ones where that was work enough for one call: {'new', id} | {'joined', id} | {'exists', id} | {'conflict', id}
--   | {'reused', id, how many got that answer again, its age in ms}
--   | {'full', waiting, max_waiting, lane or '', retry after ms, policy}
-- or {{'unstaged', id}} alone, before anything is written: a payload has gone from where it was staged
-- error: OOM at maxmemory, NEWERFORMAT where a newer version has written the queue; before anything is written
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
-- @include "lib/ending"
-- @include "lib/limit"
-- @include "lib/hold"
-- @include "lib/ready"

local LIVE_ALIAS_MS = 604800000 -- the end of its job sets it anew
local SHED_LOOKS = 16
local SHED_DELAYED_LOOKS = 128
local SHED_HELD_LANES = 64
local SHED_LANES = 1000
local SHED_PLACES = 16
local LOOKS_A_CALL = 256
-- 60 bits of a base64 hash tell the contents of one key apart; more would make each record longer.
local CONTENT_CHARS = 10

check_format(kept[4])
local MODES = { until_finished = true, window = true, replace = true }

local known_names = {}

local function known_name(at)
  local value = ARGV[at]
  if not known_names[value] then known_names[value] = named(at) end
  return value
end

-- Of all jobs, before anything is written: what cannot be read ends the call.
local function parse(at)
  local mode, result_ttl_ms = ARGV[at + 7], optional(at + 11, 1, MOST_MS)
  if not MODES[mode] then error('ARGV[' .. at + 7 .. '] is no mode of dedup') end
  if result_ttl_ms ~= '' then result_ttl_ms = math.min(keeping().most_ms, result_ttl_ms) end
  return {
    id = ARGV[at], lane = known_name(at + 1), priority = argument(at + 2, 0, 9), tenant = known_name(at + 3), payload = ARGV[at + 4],
    hash = ARGV[at + 5], content = string.sub(ARGV[at + 6], 1, CONTENT_CHARS), mode = mode,
    deadline_ms = optional(at + 8, 0, MOST_MS), delay_ms = optional(at + 9, 0, MOST_MS),
    max_attempts = optional(at + 10, 1, 1000), result_ttl_ms = result_ttl_ms,
  }
end

if #ARGV ~= 1 + 12 * argument(1, 0, MOST_NUMBER) then error('twelve arguments a job') end
local jobs = {}
for at = 2, #ARGV, 12 do jobs[#jobs + 1] = parse(at) end
for i = 1, #jobs do
  local job = jobs[i]
  if job.payload == '' and redis.call('EXISTS', staged_key(job.id), record_key(job.id)) == 0 then
    return { { 'unstaged', job.id } }
  end
end

local conf = redis.call('HMGET', conf_key, 'max_waiting', 'when_full')
local max_waiting = whole(conf[1], 0, MOST_NUMBER) or 100000
local when_full = conf[2] or 'reject'
local total = tonumber(redis.call('HGET', meta_key, 'n')) or 0
local lane_totals, lane_bounds, to_wake, refused, lane_full = {}, {}, {}, 0, 0

local function known_lane(lane)
  if lane_totals[lane] then return end
  lane_totals[lane] = tonumber(redis.call('HGET', meta_key, 'n:' .. lane)) or 0
  lane_bounds[lane] = whole(redis.call('HGET', conf_key, 'max_waiting:' .. lane), 0, MOST_NUMBER) or math.huge
end

local function counted(lane, n)
  total = total + n
  lane_totals[lane] = lane_totals[lane] + n
end

-- How long until there is likely room: a hundredth of the bound at the rate at which jobs end.
local function retry_after_ms(bound)
  local rate = tonumber(redis.call('HGET', meta_key, 'rate')) or 0
  if not (rate > 0) then return 1000 end
  return math.floor(math.min(30000, math.max(100, bound / 100 / rate * 1000)))
end

-- The newest job of a level that never ran, and its rank. looks: what it has cost this call to shed jobs, in levels that it looked at.
local looks = 0

local function newest_unrun(lane, p)
  looks = looks + 1
  local state, from, to = is_held(lane) and 'held' or 'waiting', 0, 0
  while from < SHED_LOOKS do
    local ids = redis.call('ZREVRANGE', level_key(lane, p), from, to, 'WITHSCORES')
    for i = 1, #ids, 2 do
      local rec = read(ids[i], ENDING)
      if sound(rec) and rec.s == state and place_of(rec) == lane and tonumber(rec.p) == p and not rec.n then
        return { id = ids[i], rec = rec, rank = tonumber(ids[i + 1]) }
      end
    end
    if #ids == 0 then return nil end
    from, to = to + 1, SHED_LOOKS - 1
  end
end

-- Delayed jobs have no levels: of those that are due last some are looked at, again where the call itself changes one.
local delayed

local function list_delayed()
  delayed, looks = {}, looks + SHED_DELAYED_LOOKS / 4
  for _, id in ipairs(redis.call('ZREVRANGE', delayed_key, 0, SHED_DELAYED_LOOKS - 1)) do
    local rec = read(id, { 's', 'p', 'l', 'n' })
    if sound(rec) and rec.s == 'delayed' and not rec.n then
      delayed[#delayed + 1] = { id = id, p = tonumber(rec.p), lane = rec.l }
    end
  end
end

-- The one of a level that is due last and never ran; of one lane alone, where it is named.
local function last_delayed(p, only)
  if not delayed then list_delayed() end
  for i = 1, #delayed do
    local one = delayed[i]
    if one.p == p and (not only or one.lane == only) then
      local rec = read(one.id, { 'q', unpack(ENDING) })
      if sound(rec) and rec.q and rec.s == 'delayed' and tonumber(rec.p) == p then
        return { id = one.id, rec = rec, rank = tonumber(rec.q) }
      end
    end
  end
end

-- The places that have a level in use, by level; of all lanes, and of the held ones those with the longest to wait. Read once a
-- call, and kept up to date for what the call itself puts in.
local places_at, is_listed

local function list_place(place, p)
  if not places_at or is_listed[p][place] then return end
  is_listed[p][place] = true
  table.insert(places_at[p], place)
end

local function list_places()
  places_at, is_listed = {}, {}
  for p = 0, 9 do places_at[p], is_listed[p] = {}, {} end
  local lanes = redis.call('SRANDMEMBER', lanes_key, SHED_LANES)
  for from = 1, #lanes, 1000 do
    local to, fields = math.min(#lanes, from + 999), {}
    for i = from, to do fields[#fields + 1] = 'b:' .. lanes[i] end
    local bits = redis.call('HMGET', meta_key, unpack(fields))
    for i = from, to do bitmaps[lanes[i]] = bitmaps[lanes[i]] or tonumber(bits[i - from + 1]) or 0 end
  end
  for _, held in ipairs(redis.call('ZREVRANGE', limited_key, 0, SHED_HELD_LANES - 1)) do lanes[#lanes + 1] = held end
  for _, place in ipairs(lanes) do
    local bits, p = level_bits(place), 0
    while bits > 0 do
      local used = bits % 2
      if used == 1 then list_place(place, p) end
      bits, p = (bits - used) / 2, p + 1
    end
  end
end

-- The newest of a level that never ran, of some of the places that use it.
local function newest_of(p, only, newest)
  local places, seen = places_at[p], 0
  for i = #places, 1, -1 do
    local place = places[i]
    if not has_level(level_bits(place), p) then
      is_listed[p][place], places[i] = nil, places[#places]
      places[#places] = nil
    elseif not only or lane_of(place) == only then
      local one = newest_unrun(place, p)
      if one and (not newest or one.rank > newest.rank) then newest = one end
      seen = seen + 1
      if seen == SHED_PLACES then break end
    end
  end
  return newest
end

-- The least urgent, newest job that never ran, if the newcomer outranks it; of one lane alone, where it is named.
local function victim(priority, only)
  if not places_at then list_places() end
  for p = 0, priority - 1 do
    local newest = newest_of(p, only, last_delayed(p, only))
    if newest then return newest end
  end
end

-- replaced: the record of the job whose place it takes, and so is new to the bound of another lane at most.
local function make_room(job, replaced)
  local full = lane_totals[job.lane] >= lane_bounds[job.lane] and not (replaced and replaced.l == job.lane)
  if not full and (replaced or total < max_waiting) then return nil end
  if when_full == 'shed' then
    -- One goes for one that comes: returned jobs may have gone past the bound, and are not made to pay for it.
    local only = full and job.lane or nil
    local one = victim(job.priority, only)
    if one then
      known_lane(one.rec.l)
      end_job(one.id, one.rec, 'shed', 'queue_full')
      looks = looks + 3 -- an end costs as much
      counted(one.rec.l, -1)
      return nil
    end
  end
  refused = refused + 1
  if full then
    lane_full = lane_full + 1
    local bound = lane_bounds[job.lane]
    return { 'full', lane_totals[job.lane], bound, job.lane, retry_after_ms(bound), when_full }
  end
  return { 'full', total, max_waiting, '', retry_after_ms(max_waiting), when_full }
end

local function raise_priority(id, rec, priority)
  if priority <= tonumber(rec.p) then return end
  if rec.s == 'waiting' or rec.s == 'held' then
    move_level(place_of(rec), rec.p, priority, id, tonumber(rec.q))
  end
  redis.call('HSET', record_key(id), 'p', priority)
  rec.p = priority
  if rec.s == 'delayed' then delayed = nil end
  if rec.s == 'waiting' and priority >= URGENT then to_wake[rec.l] = true end
end

local function extend_deadline(id, rec, deadline_ms)
  if not rec.x then return end
  if deadline_ms == '' then
    rec.x = nil
    redis.call('HDEL', record_key(id), 'x')
    redis.call('ZREM', deadlines_key, id)
  elseif now_ms + deadline_ms > tonumber(rec.x) then
    local at = text(now_ms + deadline_ms)
    rec.x = at
    redis.call('HSET', record_key(id), 'x', at)
    if rec.s ~= 'running' then redis.call('ZADD', deadlines_key, at, id) end
  end
end

local function hasten(id, rec, delay_ms)
  -- A retry's back-off is not the caller's to shorten.
  if rec.s ~= 'delayed' or rec.n then return end
  if delay_ms == '' then delay_ms = 0 end
  local due = now_ms + delay_ms
  if due >= (tonumber(rec.u) or math.huge) then return end
  delayed = nil
  if due > now_ms then
    redis.call('ZADD', delayed_key, text(due), id)
    redis.call('HSET', record_key(id), 'u', text(due), 'q', text(unique_us() + delay_ms * 1000))
  else
    redis.call('ZREM', delayed_key, id)
    rec.q = unique_us()
    redis.call('HSET', record_key(id), 'q', text(rec.q))
    redis.call('HDEL', record_key(id), 'u')
    make_ready(id, rec)
    if rec.s == 'waiting' then to_wake[rec.l] = true end
  end
end

-- Who joins may ask for more than who was there; '' asks for what the queue's settings say.
local function keep_longer(id, rec, asked_ms)
  if not rec.g and asked_ms == '' then return end
  local own_ms = keeping().result_ms
  local wanted_ms = asked_ms == '' and own_ms or asked_ms
  if wanted_ms > (tonumber(rec.g) or own_ms) then redis.call('HSET', record_key(id), 'g', text(wanted_ms)) end
end

local function allow_attempts(id, rec, asked)
  if not rec.a and asked == '' then return end
  local own = redis.call('HMGET', conf_key, 'max_attempts:' .. rec.l, 'max_attempts')
  local usual = whole(own[1], 1, 1000) or whole(own[2], 1, 1000) or 3
  local wanted = asked == '' and usual or asked
  if wanted > (tonumber(rec.a) or usual) then redis.call('HSET', record_key(id), 'a', text(wanted)) end
end

local function join(id, rec, job)
  redis.pcall('SADD', tickets_key(id), job.id)
  if not rec.j then redis.pcall('SADD', tickets_key(id), id) end
  set_alias(job.id, id, tonumber(rec.j) or 0, LIVE_ALIAS_MS)
  redis.call('HINCRBY', record_key(id), 'j', 1)
  raise_priority(id, rec, job.priority)
  extend_deadline(id, rec, job.deadline_ms)
  hasten(id, rec, job.delay_ms)
  keep_longer(id, rec, job.result_ttl_ms)
  allow_attempts(id, rec, job.max_attempts)
  if job.mode == 'window' then redis.call('HSET', record_key(id), 'm', 'window') end
  add('t:joined', 1)
  return { 'joined', id }
end

local function reused(id, hits, ended_ms)
  return { 'reused', id, tonumber(hits) or 0, now_ms - (tonumber(ended_ms) or now_ms) }
end

-- Settle what a dedup key says. Returns a reply; or nil, whether the newcomer takes another's place, and its rank.
local function settle(job, owner)
  if not owner then return nil end
  local rec = read(owner, { 's', 'p', 'l', 't', 'q', 'x', 'u', 'n', 'd', 'h', 'm', 'j', 'k', 'g', 'e', 'o', 'a', 'H' })
  if not sound(rec) or not rec.q then return nil end
  local live = not ENDED[rec.s]
  if job.mode == 'replace' then
    if not live or rec.s == 'running' then return nil end
    local refusal = make_room(job, rec)
    if refusal then return refusal end
    known_lane(rec.l)
    end_job(owner, rec, 'cancelled', 'replaced')
    counted(rec.l, -1)
    return nil, true, rec.s ~= 'delayed' and tonumber(rec.q) or nil
  end
  local window_hit = rec.s == 'done' and rec.m == 'window' and job.mode == 'window'
  if not live and not window_hit then return nil end
  if (rec.h or rec.d) ~= job.content then return { 'conflict', owner } end
  if live then return join(owner, rec, job) end
  local lasts_ms = math.max(BRIEF_MS, redis.call('PTTL', record_key(owner)))
  set_alias(job.id, owner, (tonumber(rec.j) or 0) + (tonumber(rec.H) or 0), lasts_ms)
  add('t:reused', 1)
  return reused(owner, redis.call('HINCRBY', record_key(owner), 'H', 1), rec.e)
end

local function create(job, rank)
  local delay_ms = job.delay_ms == '' and 0 or job.delay_ms
  local is_delayed = delay_ms > 0
  -- A delayed job ages from when it is due.
  if is_delayed or not rank then rank = unique_us() + delay_ms * 1000 end
  local state = is_delayed and 'delayed' or ready_state(job.lane, job.tenant)
  local fields = { 's', state, 'p', job.priority, 'l', job.lane, 'q', text(rank) }
  local function set(name, value)
    fields[#fields + 1] = name
    fields[#fields + 1] = value
  end
  if job.tenant ~= 'default' then set('t', job.tenant) end
  if math.abs(rank / 1000 - now_ms) > 1 then set('b', text(now_ms)) end
  if job.hash ~= '' then
    set('d', job.hash)
    if job.content ~= job.hash then set('h', job.content) end
    if job.mode ~= 'until_finished' then set('m', job.mode) end
    redis.call('SET', dedup_key(job.tenant, job.hash), job.id)
  end
  if job.max_attempts ~= '' then set('a', job.max_attempts) end
  if job.result_ttl_ms ~= '' then set('g', text(job.result_ttl_ms)) end
  if job.deadline_ms ~= '' then
    local at = text(now_ms + job.deadline_ms)
    set('x', at)
    redis.call('ZADD', deadlines_key, at, job.id)
  end
  if is_delayed then
    local due = text(now_ms + delay_ms)
    set('u', due)
    redis.call('ZADD', delayed_key, due, job.id)
    delayed = nil
  end
  redis.call('HSET', record_key(job.id), unpack(fields))
  if job.payload ~= '' then
    redis.call('SET', payload_key(job.id), job.payload)
  else
    redis.pcall('RENAME', staged_key(job.id), payload_key(job.id))
    redis.call('PERSIST', payload_key(job.id))
  end
  if state == 'waiting' then
    enter_level(job.lane, job.priority, job.id, rank)
    list_place(job.lane, job.priority)
    to_wake[job.lane] = true
  elseif state == 'held' then
    hold(job.id, { l = job.lane, t = job.tenant, p = job.priority, q = rank })
    list_place(held_lane(job.lane, job.tenant), job.priority)
  end
  count_waiting(job.lane, 1)
  counted(job.lane, 1)
  tell(channel_key(job.id), queued_json(job.id))
  add('t:enqueued', 1)
  return { 'new', job.id }
end

-- Who is refused waits for a token of its own; who got in passes the token on while there is room.
local function pass_space_on()
  if when_full ~= 'block' then return end
  if refused > 0 then redis.call('HSET', meta_key, 'blocked', 1) end
  if total >= max_waiting then
    redis.call('DEL', space_key)
  elseif refused == 0 and redis.call('LLEN', space_key) == 0 then
    redis.call('RPUSH', space_key, '1')
  end
end

-- Where this very call has been made before and joined a job.
local function joined_before(id)
  local rec = id and read(id, { 's', 'H', 'e' })
  if not rec then return nil end
  return rec.s == 'done' and reused(id, rec.H, rec.e) or { 'joined', id }
end

local function enqueue(job)
  if redis.call('EXISTS', record_key(job.id)) == 1 then return { 'exists', job.id } end
  known_lane(job.lane)
  local reply, replaces, rank
  if job.hash ~= '' then
    local names = redis.call('MGET', alias_key(job.id), dedup_key(job.tenant, job.hash))
    reply = joined_before(names[1])
    if reply then return reply end
    reply, replaces, rank = settle(job, names[2])
    if reply then return reply end
  end
  -- What takes another's place is not new to the bound.
  reply = not replaces and make_room(job) or nil
  if reply then return reply end
  return create(job, rank)
end

local replies = {}
for i = 1, #jobs do
  local job = jobs[i]
  replies[i] = enqueue(job)
  -- What has become no job is not kept.
  if job.payload == '' and replies[i][1] ~= 'new' then redis.call('UNLINK', staged_key(job.id)) end
  if looks >= LOOKS_A_CALL then break end
end
if refused > 0 then add('t:refused', refused) end
if lane_full > 0 then add('t:refused_lane', lane_full) end
save_us()
save_ended()
save_counts()
for lane in pairs(to_wake) do wake(lane) end
pass_space_on()
return replies
