#!lua
-- Enqueue jobs; or join, reuse or replace the jobs that own their dedup keys. May be repeated.
-- KEYS[1] prefix of the queue's keys
-- ARGV[1] number of jobs, at most 128
-- ARGV[2…] a row `new` a job (scheduler/queue/rows.py), '' for what is not set. Durations are ms from now. payload '': it is large
--   and is in its staged key
-- returns, for each job, or for the first ones if those cost enough for one call:
--   {'new', id} | {'joined', id} | {'exists', id} | {'conflict', id}
--   | {'reused', id, how often that answer has been reused, its age in ms}
--   | {'full', waiting, max_waiting, lane or '', retry after ms, policy}
-- or {{'unstaged', id}} alone, before the first write: a staged payload has gone
-- error: OOM at maxmemory, NEWERFORMAT if a newer version has written the queue; both before the first write
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
-- @include "lib/limit"
-- @include "lib/hold"
-- @include "lib/ready"
-- @include "lib/shed"
-- @include "lib/join"

local SHED_COST_A_CALL = 256
local LEAST_RETRY_AFTER_MS, MOST_RETRY_AFTER_MS = 100, 30000
-- 60 bits of a base64 hash are enough to tell the contents of one key apart, and keep the record short.
local CONTENT_CHARS = 10

check_format(kept[4])
local MODES = { until_finished = true, window = true, replace = true }

local known_names = {}

local function known_name(at)
  local value = ARGV[at]
  if not known_names[value] then known_names[value] = named(at) end
  return value
end

-- Every job is read before the first write, so that a bad argument changes nothing.
local function parse(at)
  local mode, result_ttl_ms = ARGV[at + NEW_DEDUP], optional(at + NEW_RESULT_TTL_MS, 1, MOST_MS)
  if not MODES[mode] then error('ARGV[' .. at + NEW_DEDUP .. '] is no mode of dedup') end
  if result_ttl_ms ~= '' then result_ttl_ms = math.min(keeping().most_ms, result_ttl_ms) end
  return {
    id = ARGV[at + NEW_JOB_ID],
    lane = known_name(at + NEW_LANE),
    priority = argument(at + NEW_PRIORITY, 0, 9),
    tenant = known_name(at + NEW_TENANT),
    payload = ARGV[at + NEW_PAYLOAD],
    hash = ARGV[at + NEW_DEDUP_HASH],
    content = string.sub(ARGV[at + NEW_CONTENT_HASH], 1, CONTENT_CHARS),
    mode = mode,
    deadline_ms = optional(at + NEW_DEADLINE_MS, 0, MOST_MS),
    delay_ms = optional(at + NEW_DELAY_MS, 0, MOST_MS),
    max_attempts = optional(at + NEW_MAX_ATTEMPTS, 1, 1000),
    result_ttl_ms = result_ttl_ms,
  }
end

if #ARGV ~= 1 + NEW_WIDTH * argument(1, 0, MOST_NUMBER) then error('the arguments are not a row a job') end
local jobs = {}
for at = 2, #ARGV, NEW_WIDTH do jobs[#jobs + 1] = parse(at) end
for i = 1, #jobs do
  local job = jobs[i]
  if job.payload == '' and redis.call('EXISTS', staged_key(job.id), record_key(job.id)) == 0 then
    return { { 'unstaged', job.id } }
  end
end

local conf = redis.call('HMGET', conf_key, 'max_waiting', 'when_full')
local max_waiting = whole(conf[1], 0, MOST_NUMBER) or DEFAULT_MAX_WAITING
local when_full = conf[2] or DEFAULT_WHEN_FULL
local total = tonumber(redis.call('HGET', meta_key, 'n')) or 0
local lane_totals, lane_bounds, refused, lane_full = {}, {}, 0, 0

local function known_lane(lane)
  if lane_totals[lane] then return end
  lane_totals[lane] = tonumber(redis.call('HGET', meta_key, 'n:' .. lane)) or 0
  lane_bounds[lane] = whole(redis.call('HGET', conf_key, 'max_waiting:' .. lane), 0, MOST_NUMBER) or math.huge
end

local function counted(lane, n)
  total = total + n
  lane_totals[lane] = lane_totals[lane] + n
end

-- How long until there is likely room: the time in which a hundredth of the bound ends.
local function retry_after_ms(bound)
  local rate = tonumber(redis.call('HGET', meta_key, 'rate')) or 0
  if not (rate > 0) then return 1000 end
  return math.floor(math.min(MOST_RETRY_AFTER_MS, math.max(LEAST_RETRY_AFTER_MS, bound / 100 / rate * 1000)))
end

-- Makes room for a job, or returns a refusal. replaced: the record of the job that it replaces, if it does; it then counts only
-- against the bound of another lane.
local function make_room(job, replaced)
  local full = lane_totals[job.lane] >= lane_bounds[job.lane] and not (replaced and replaced.l == job.lane)
  if not full and (replaced or total < max_waiting) then return nil end
  if when_full == 'shed' then
    -- One job goes for each that comes: jobs that were given back may have passed the bound, and must not pay for it.
    local only = full and job.lane or nil
    local one = victim(job.priority, only)
    if one then
      known_lane(one.rec.l)
      end_job(one.id, one.rec, 'shed', 'queue_full')
      shed_cost = shed_cost + 3 -- what the end costs
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

local function reused(id, hits, ended_ms)
  return { 'reused', id, tonumber(hits) or 0, now_ms - (tonumber(ended_ms) or now_ms) }
end

-- Decides by the owner of its dedup key whether a job is new. Returns a reply if it is not; else nil, whether it replaces the
-- owner, and the rank that it takes over.
local function resolve_dedup(job, owner)
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
  -- A delayed job takes over no rank: it ages from when it is due.
  local takes_over = rank and not is_delayed
  if not takes_over then rank = unique_us() + delay_ms * 1000 end
  local state = is_delayed and 'delayed' or ready_state(job.lane, job.tenant)
  local fields = { 's', state, 'p', job.priority, 'l', job.lane, 'q', text(rank) }
  local function set(name, value)
    fields[#fields + 1] = name
    fields[#fields + 1] = value
  end
  if job.tenant ~= 'default' then set('t', job.tenant) end
  if takes_over then
    set('R', text(now_ms))
  elseif math.abs(rank / 1000 - now_ms) > 1 then
    set('b', text(now_ms))
  end
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
    delayed_changed()
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

-- A refused caller waits for a token. A caller that got in passes its token on while there is room.
local function pass_space_on()
  if when_full ~= 'block' then return end
  if refused > 0 then redis.call('HSET', meta_key, 'blocked', 1) end
  if total >= max_waiting then
    redis.call('DEL', space_key)
  elseif refused == 0 and redis.call('LLEN', space_key) == 0 then
    redis.call('RPUSH', space_key, '1')
  end
end

-- If this call has been made before and has joined a job: the reply that it got.
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
    reply, replaces, rank = resolve_dedup(job, names[2])
    if reply then return reply end
  end
  -- A replacement has made its room already.
  reply = not replaces and make_room(job) or nil
  if reply then return reply end
  return create(job, rank)
end

local replies = {}
for i = 1, #jobs do
  local job = jobs[i]
  replies[i] = enqueue(job)
  -- A staged request that became no job goes.
  if job.payload == '' and replies[i][1] ~= 'new' then redis.call('UNLINK', staged_key(job.id)) end
  if shed_cost >= SHED_COST_A_CALL then break end
end
add('t:refused', refused)
add('t:refused_lane', lane_full)
save_us()
save_ended()
save_counts()
wake_lanes()
pass_space_on()
return replies
