#!lua flags=allow-oom
-- Lease the best jobs that are ready, over several lanes, one suspect among them at most; park those whose tenant has used
-- what it may.
-- May be repeated with the same claim id.
-- KEYS[1] prefix of the queue's keys
-- ARGV[1] claim id  ARGV[2] worker process  ARGV[3] lease, ms  ARGV[4] how many jobs at most
-- ARGV[5] how many of those places are kept for priorities 8 and 9
-- ARGV[6] 1 if the worker process runs no suspect and may take one, else 0
-- ARGV[7…] lane, how many of it at most, how many of those places are kept for 8 and 9,
--   '' or where its jobs may go: 'endpoint room kept outstanding weight endpoint …'; …
-- returns {more, {lane, ms, endpoints, …}, {id, token, attempt, failures, max_attempts or nil, priority, lane, tenant, waited ms,
--   remaining ms or nil, result ttl ms or nil, suspect (1 or 0), endpoint or '', payload}, …}
--   more: claimable work was left behind, 2: of priority 8 or 9, 1: below only, 0: none;
--   lanes whose work was left for want of a permit, when one comes, and the endpoints that have none
-- @include "lib/clock"
-- @include "lib/record"
-- @include "lib/level"
-- @include "lib/count"
-- @include "lib/wake"
-- @include "lib/event"
-- @include "lib/ending"
-- @include "lib/garbage"
-- @include "lib/limit"
-- @include "lib/hold"
-- @include "lib/order"

local REMEMBER_CLAIM_MS = 120000
local STARVED_EVERY = 20
local MAX_HINDERED = 256

local claim_id, worker = ARGV[1], ARGV[2]
local lease_ms, limit, limit_kept = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])

local suspects = tonumber(ARGV[6])

local function entry(id, rec, token, endpoint, payload)
  return {
    id, token, tonumber(rec.n), tonumber(rec.f or 0), tonumber(rec.a or '') or false, tonumber(rec.p), rec.l,
    rec.t or 'default', math.max(0, now_ms - math.floor(tonumber(rec.q) / 1000)),
    rec.x and tonumber(rec.x) - now_ms or false, tonumber(rec.g or '') or false, is_suspect(rec) and 1 or 0, endpoint, payload,
  }
end

-- The reply to this very claim may have been lost.
local function repeated()
  local before = redis.call('GET', claimed_key(worker))
  if not before or string.sub(before, 1, #claim_id + 1) ~= claim_id .. '\n' then return nil end
  local reply = { 2, {} }
  for id, token, endpoint in string.gmatch(before, '\n(%S+) (%d+) ?(%S*)') do
    local rec = read_all(id)
    local payload = redis.call('GET', payload_key(id))
    if rec and rec.s == 'running' and rec.k == token and payload then
      reply[#reply + 1] = entry(id, rec, tonumber(token), endpoint, payload)
    end
  end
  return reply
end

local before = repeated()
if before then return before end

-- Where the jobs of a lane may go: the endpoints that this worker process has room at.
local function parse_offers(argument)
  local list, offers = {}, {}
  for endpoint, room, kept, outstanding, weight in string.gmatch(argument, '(%S+) (%d+) (%d+) (%d+) (%S+)') do
    list[#list + 1] = {
      endpoint = endpoint, room = tonumber(room), kept = tonumber(kept), outstanding = tonumber(outstanding),
      weight = tonumber(weight), gate = endpoint_gate(endpoint),
    }
  end

  local function load(offer) return (offer.outstanding + 1) / offer.weight end

  -- Of those with room and a permit the least busy; nil, in how many ms a permit comes, and of which, if it is that.
  function offers.choose(p)
    local chosen, wait_ms, without = nil, nil, {}
    for _, offer in ipairs(list) do
      if offer.room > (p >= URGENT and 0 or offer.kept) then
        if offer.gate and not offer.gate.passable() then
          wait_ms = math.min(wait_ms or math.huge, offer.gate.passable_in_ms())
          without[#without + 1] = offer.endpoint
        elseif not chosen or load(offer) < load(chosen) then
          chosen = offer
        end
      end
    end
    return chosen, wait_ms, table.concat(without, ' ')
  end

  return offers
end

local paused = {}
for _, lane in ipairs(redis.call('SMEMBERS', paused_key)) do paused[lane] = true end
local lanes, fields, quotas, kept, offers = {}, { 'claims' }, {}, {}, {}
for i = 7, #ARGV, 4 do
  local lane = ARGV[i]
  if not paused[lane] then
    lanes[#lanes + 1] = lane
    fields[#fields + 1] = 'b:' .. lane
    fields[#fields + 1] = 'b:' .. suspects_lane(lane)
    quotas[lane], kept[lane] = tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])
    offers[lane] = ARGV[i + 3] ~= '' and parse_offers(ARGV[i + 3]) or nil
  end
end
local meta = redis.call('HMGET', meta_key, unpack(fields))
local claims = tonumber(meta[1] or 0)
local cursors = {}
for i, lane in ipairs(lanes) do
  open_cursors(cursors, lane, tonumber(meta[2 * i] or 0))
  open_cursors(cursors, lane, tonumber(meta[2 * i + 1] or 0), suspects_lane(lane))
end
local heap = make_heap(cursors, limit)

local places = limit

local function wanted_of(cursor)
  local lane, urgent = cursor.lane, cursor.p >= URGENT
  return quotas[lane] > (urgent and 0 or kept[lane]) and places > (urgent and 0 or limit_kept)
    and (cursor.place == lane or suspects > 0)
end

-- The oldest job that has waited past its bound.
local function starved()
  if aging_us == 0 then return nil end
  local chosen
  for _, cursor in ipairs(cursors) do
    if cursor.class ~= LAST and cursor.p < URGENT and cursor.rank < now_us and wanted_of(cursor)
        and (not chosen or cursor.score < chosen.score) then
      chosen = cursor
    end
  end
  return chosen
end

-- A name that a reply can carry and a claim can remember.
local function plain(name) return not string.find(name, '[^\33-\126]') end

-- Whether a job can run: nil, or what it has to become. Reads only.
local function hindrance(job)
  local rec = job.rec
  if not (sound(rec) and rec.q and rec.s == 'waiting' and place_of(rec) == job.place and tonumber(rec.p) == job.p
      and plain(job.id) and plain(rec.t or '')) then
    return 'garbage'
  end
  if rec.x and tonumber(rec.x) <= now_ms then return 'expired' end
  job.gate = tenant_gate(rec.t)
  if job.gate and not job.gate.passable() then return 'held' end
  local payload = redis.pcall('GET', payload_key(job.id))
  if type(payload) ~= 'string' then return 'payload_lost' end
  job.payload = payload
end

-- Look at every record before the first write; what cannot run makes place for the next.
local runnable, hindered, no_permit = {}, {}, {}

local function look_at(cursor)
  local lane = cursor.lane
  local offer, wait_ms, without
  if offers[lane] then
    offer, wait_ms, without = offers[lane].choose(cursor.p)
    if not offer then
      -- The less urgent have no more places to go to than the more urgent.
      if cursor.p >= URGENT then quotas[lane] = 0 else kept[lane] = math.huge end
      if wait_ms then no_permit[lane] = { wait_ms, without } end
      return
    end
  end
  local job = { lane = lane, place = cursor.place, p = cursor.p, id = pick(heap, cursor) }
  job.rec = read_all(job.id)
  job.hindrance = hindrance(job)
  if job.hindrance then
    hindered[#hindered + 1] = job
    return
  end
  runnable[#runnable + 1] = job
  quotas[lane], places = quotas[lane] - 1, places - 1
  if cursor.place ~= lane then suspects = suspects - 1 end
  if job.gate then job.gate.charge(estimate_tokens(#job.payload)) end
  if offer then
    job.endpoint, job.limited = offer.endpoint, offer.gate
    offer.room, offer.outstanding = offer.room - 1, offer.outstanding + 1
    if offer.gate then offer.gate.charge(estimate_tokens(#job.payload)) end
  end
end

while #runnable < limit and #hindered < MAX_HINDERED do
  local cursor = (claims + #runnable + 1) % STARVED_EVERY == 0 and starved() or best(heap, wanted_of)
  if not cursor then break end
  look_at(cursor)
end

-- Whether work is left is known before the levels change under the cursors. Suspects that are left wake nobody: whoever has
-- done with one claims again, and tick tells the others.
local more, left = 0, {}
for _, cursor in ipairs(cursors) do
  local lane, urgency = cursor.lane, cursor.p >= URGENT and 2 or 1
  if cursor.place == lane and urgency > (left[lane] or 0) and not no_permit[lane]
      and has_more(cursor) then
    left[lane], more = urgency, math.max(more, urgency)
  end
end

leave_picked(cursors)
for _, job in ipairs(hindered) do
  if job.hindrance == 'held' then
    redis.call('HSET', record_key(job.id), 's', 'held')
    hold(job.id, job.rec)
  elseif job.hindrance == 'garbage' then
    count_waiting(job.lane, -1)
    set_aside(job.id, job.rec, 'waiting')
  elseif job.hindrance == 'expired' then
    end_job(job.id, job.rec, 'expired', 'deadline')
  else
    end_job(job.id, job.rec, 'failed', 'payload_lost', error_json('payload_lost', 'the stored request has gone'))
  end
end

local waits = {}
for _, lane in ipairs(lanes) do
  if no_permit[lane] then
    waits[#waits + 1], waits[#waits + 2], waits[#waits + 3] = lane, no_permit[lane][1], no_permit[lane][2]
  end
end
local reply, remembered, leases, last_token = { more, waits }, { claim_id }, {}, 0
if #runnable > 0 then
  last_token = redis.call('HINCRBY', meta_key, 'token', #runnable)
  redis.call('HINCRBY', meta_key, 'claims', #runnable)
end
local claimed_at, lease_end = text(now_ms), text(now_ms + lease_ms)
for i, job in ipairs(runnable) do
  local rec, token = job.rec, last_token - #runnable + i
  rec.n = (rec.n or 0) + 1
  redis.call('HSET', record_key(job.id), 's', 'running', 'k', text(token), 'w', worker, 'c', claimed_at, 'n', rec.n)
  if job.limited then
    redis.call('HSET', record_key(job.id), 'v', job.endpoint)
  elseif rec.v then
    redis.call('HDEL', record_key(job.id), 'v')
  end
  leases[#leases + 1] = lease_end
  leases[#leases + 1] = job.id
  if rec.x then redis.call('ZREM', deadlines_key, job.id) end
  count_waiting(rec.l, -1)
  remembered[#remembered + 1] = job.id .. ' ' .. text(token) .. ' ' .. (job.endpoint or '')
  reply[#reply + 1] = entry(job.id, rec, token, job.endpoint or '', job.payload)
end
if #leases > 0 then
  redis.call('ZADD', leases_key, unpack(leases))
  redis.call('SET', claimed_key(worker), table.concat(remembered, '\n'), 'PX', REMEMBER_CLAIM_MS)
end
save_gates()
save_ended()
save_counts()
for lane, urgency in pairs(left) do rouse(lane, urgency == 2) end
return reply
