#!lua flags=allow-oom
-- Lease the jobs that are next, over several lanes, at most one suspect among them; hold those whose tenant has used up its
-- limit. May be repeated with the same claim id.
-- KEYS[1] prefix of the queue's keys
-- ARGV[1] claim id  ARGV[2] worker process  ARGV[3] lease, ms  ARGV[4] how many jobs at most
-- ARGV[5] how many of those slots are reserved for priorities 8 and 9
-- ARGV[6] 1 if the worker process may take a suspect, because it runs none; else 0
-- ARGV[7] take no more jobs once their requests have this many bytes; one is taken in any case
-- ARGV[8…] a row `wanted` a lane (scheduler/queue/rows.py): the lane, how many jobs of it at most, how many of those slots are
--   reserved for 8 and 9, and '' or where its jobs may go: 'endpoint room reserved outstanding weight', repeated
-- returns {more, {lane, ms, endpoints, …}, a row `claimed` for each job, …}
--   more: claimable work was left behind, 2: of priority 8 or 9, 1: only below, 0: none
--   lanes whose work was left for want of a permit, the ms to the next permit, and the endpoints that lack one
--   payload: '' if it has INLINE_BYTES or more, as Lua would copy it four times
-- @include "lib/clock"
-- error: NEWERFORMAT, if a newer version has written the queue
-- @include "lib/argument"
-- @include "lib/format"
-- @include "lib/record"
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
-- @include "lib/rank"
-- @include "lib/order"
-- @include "lib/offers"

local REMEMBER_CLAIM_MS = 120000
local STARVED_EVERY = 20
local MAX_HINDERED = 64
local INLINE_BYTES = 32768

check_format(kept[4])
local claim_id, worker = named(1), named(2)
local lease_ms, limit, limit_reserved = argument(3, 1, MOST_MS), argument(4, 0, MOST_JOBS), argument(5, 0, MOST_JOBS)

local suspects, bytes_left = argument(6, 0, 1), argument(7, 1, MOST_NUMBER)
if (#ARGV - 7) % WANTED_WIDTH > 0 then error('the arguments are not a row a lane') end

-- A request and its bytes; '' in place of a large one, nil without one.
local function read_payload(id)
  local payload = redis.pcall('GETRANGE', payload_key(id), 0, INLINE_BYTES - 1)
  if type(payload) ~= 'string' or payload == '' then return nil end
  if #payload < INLINE_BYTES then return payload, #payload end
  return '', request_bytes(id)
end

local function entry(id, rec, token, endpoint, payload)
  local waited_ms = now_ms - ready_ms(rec)
  -- @row "claimed"
  return {
    id = id,
    token = token,
    attempt = tonumber(rec.n),
    failures = tonumber(rec.f or 0),
    max_attempts = rec.a and tonumber(rec.a) or false,
    priority = tonumber(rec.p),
    lane = rec.l,
    tenant = rec.t or 'default',
    waited_ms = waited_ms > 0 and waited_ms or 0,
    remaining_ms = rec.x and rec.x - now_ms or false,
    result_ttl_ms = rec.g and tonumber(rec.g) or false,
    payload = payload,
    endpoint = endpoint,
    suspect = is_suspect(rec) and 1 or 0,
    waits = tonumber(rec.W or 0),
  }
end

-- The reply to this claim may have been lost: the same jobs, if it has been made before.
local function repeated()
  local before = redis.call('GET', claimed_key(worker))
  if not before or string.sub(before, 1, #claim_id + 1) ~= claim_id .. '\n' then return nil end
  local reply = { 2, {} }
  for id, token, endpoint in string.gmatch(before, '\n(%S+) (%d+) ?(%S*)') do
    local rec = read_all(id)
    local payload = read_payload(id)
    if rec and rec.s == 'running' and rec.k == token and payload then
      reply[#reply + 1] = entry(id, rec, tonumber(token), endpoint, payload)
    end
  end
  return reply
end

local before = repeated()
if before then return before end

local paused, fields = {}, { 'claims', 'suspects' }
for at = 8, #ARGV, WANTED_WIDTH do
  fields[#fields + 1], paused[#paused + 1] = 'b:' .. named(at + WANTED_LANE), ARGV[at + WANTED_LANE]
end
paused = #paused > 0 and redis.call('SMISMEMBER', paused_key, unpack(paused)) or paused
local meta = redis.call('HMGET', meta_key, unpack(fields))
local claims, any_suspects = tonumber(meta[1]) or 0, suspects > 0 and meta[2]

-- The lanes that have work, and a cursor for each of their levels.
local lanes, cursors = {}, {}
for i = 3, #fields do
  local at = 8 + (i - 3) * WANTED_WIDTH
  local name, bits = ARGV[at + WANTED_LANE], tonumber(meta[i] or 0)
  local bits_of_suspects = any_suspects and level_bits(suspects_lane(name)) or 0
  bitmaps[name] = bits
  if (bits > 0 or bits_of_suspects > 0) and paused[i - 2] == 0 then
    local offers = ARGV[at + WANTED_OFFERS]
    local lane = {
      name = name, quota = argument(at + WANTED_QUOTA, 0, MOST_NUMBER), reserved = argument(at + WANTED_RESERVED, 0, MOST_NUMBER),
      claimed = 0, left = 0,
      offers = offers ~= '' and parse_offers(offers), without_permit = false,
    }
    lanes[#lanes + 1] = lane
    open_cursors(cursors, { name = name, lane = lane }, bits)
    if bits_of_suspects > 0 then
      open_cursors(cursors, { name = suspects_lane(name), lane = lane, is_beside = true }, bits_of_suspects)
    end
  end
end
local order, slots = make_order(cursors, limit), limit

local function wanted(cursor)
  local place = cursor.place
  if place.is_beside and suspects < 1 then return false end
  local lane = place.lane
  if cursor.p >= URGENT then return lane.quota > 0 end
  return lane.quota > lane.reserved and slots > limit_reserved
end

-- The oldest job that has waited past its bound.
local function starved()
  if aging_us == 0 or none_before(order, now_us) then return nil end
  local chosen, oldest
  for i = 1, #cursors do
    local cursor = cursors[i]
    if cursor.p < URGENT and wanted(cursor) and rank_of(cursor) and cursor.rank < now_us then
      local score = cursor.rank - handicap_of(cursor.p)
      if not chosen or score < oldest then chosen, oldest = cursor, score end
    end
  end
  return chosen
end

-- Whether a reply can carry a name, and a claim remember it.
local function plain(name) return string.find(name, '^[!-~]*$') end

-- nil if a job can run, else why not. It only reads.
local function hindrance(job)
  local rec = job.rec
  if not (sound(rec) and rec.q and rec.s == 'waiting' and place_of(rec) == job.place and tonumber(rec.p) == job.p
      and plain(job.id) and plain(rec.t or '')) then
    return 'garbage'
  end
  if rec.x and tonumber(rec.x) <= now_ms then return 'expired' end
  job.gate = tenant_gate(rec.t)
  if job.gate and not job.gate.passable() then return 'held' end
  job.payload, job.bytes = read_payload(job.id)
  if not job.payload then return 'payload_lost' end
end

-- Every record is read before the first write. If a job cannot run, the next one gets its chance.
local runnable, hindered, no_permit = {}, {}, {}

local function consider(cursor)
  local lane = cursor.place.lane
  local offer, wait_ms, without
  if lane.offers then
    offer, wait_ms, without = lane.offers.choose(cursor.p)
    if not offer then
      -- Less urgent jobs have no more endpoints to go to than more urgent ones.
      if cursor.p >= URGENT then lane.quota = 0 else lane.reserved = math.huge end
      if wait_ms then lane.without_permit = { wait_ms, without } end
      return
    end
  end
  local id = pick(cursor)
  local job = { id = id, lane = lane, place = cursor.place.name, p = cursor.p, rec = read_all(id), payload = false, bytes = 0, gate = false }
  job.hindrance = hindrance(job)
  if job.hindrance then
    hindered[#hindered + 1] = job
    return
  end
  runnable[#runnable + 1] = job
  lane.quota, lane.claimed, slots = lane.quota - 1, lane.claimed + 1, slots - 1
  if cursor.place.is_beside then suspects = suspects - 1 end
  bytes_left = bytes_left - job.bytes
  if job.gate then job.gate.charge(estimate_tokens(job.bytes)) end
  if offer then
    job.endpoint, job.limited = offer.endpoint, offer.gate
    offer.room, offer.outstanding = offer.room - 1, offer.outstanding + 1
    if offer.gate then offer.gate.charge(estimate_tokens(job.bytes)) end
  end
end

while #runnable < limit and #hindered < MAX_HINDERED and (bytes_left > 0 or #runnable == 0) do
  local cursor = (claims + #runnable + 1) % STARVED_EVERY == 0 and starved() or best(order, wanted)
  if not cursor then break end
  consider(cursor)
end

-- Find out whether work is left before the levels change under the cursors. Suspects that are left wake nobody: the process that
-- finishes one claims again, and tick wakes the others.
local more = 0
for i = 1, #cursors do
  local cursor = cursors[i]
  local lane, urgency = cursor.place.lane, cursor.p >= URGENT and 2 or 1
  if urgency > lane.left and not cursor.place.is_beside and not lane.without_permit and has_more(cursor) then
    lane.left = urgency
    if urgency > more then more = urgency end
  end
end

-- The first write: if the counter of tokens is damaged, nothing has happened yet.
local last_token = 0
if #runnable > 0 then
  last_token = redis.call('HINCRBY', meta_key, 'token', #runnable)
  add('claims', #runnable)
end

leave_picked(cursors)
for _, job in ipairs(hindered) do
  if job.hindrance == 'held' then
    redis.call('HSET', record_key(job.id), 's', 'held')
    hold(job.id, job.rec)
  elseif job.hindrance == 'garbage' then
    count_waiting(job.lane.name, -1)
    set_aside(job.id, job.rec, 'waiting')
  elseif job.hindrance == 'expired' then
    end_job(job.id, job.rec, 'expired', 'deadline')
  else
    end_job(job.id, job.rec, 'failed', 'payload_lost', error_json('payload_lost', 'the stored request has gone'))
  end
end

local reply, remembered, leases = { more, {} }, { claim_id }, {}
local claimed_at, lease_end = text(now_ms), text(now_ms + lease_ms)
for i = 1, #runnable do
  local job = runnable[i]
  local id, rec, endpoint = job.id, job.rec, job.endpoint or ''
  local token = text(last_token - #runnable + i)
  rec.n = (rec.n or 0) + 1
  redis.call('HSET', record_key(id), 's', 'running', 'k', token, 'w', worker, 'c', claimed_at, 'n', rec.n)
  if job.limited then
    redis.call('HSET', record_key(id), 'v', endpoint)
  elseif rec.v then
    redis.call('HDEL', record_key(id), 'v')
  end
  leases[2 * i - 1], leases[2 * i] = lease_end, id
  if rec.x then redis.call('ZREM', deadlines_key, id) end
  remembered[i + 1] = id .. ' ' .. token .. ' ' .. endpoint
  reply[i + 2] = entry(id, rec, last_token - #runnable + i, endpoint, job.payload)
end
if #leases > 0 then
  redis.call('ZADD', leases_key, unpack(leases))
  redis.call('SET', claimed_key(worker), table.concat(remembered, '\n'), 'PX', REMEMBER_CLAIM_MS)
end
local waits = reply[2]
for i = 1, #lanes do
  local lane = lanes[i]
  if lane.claimed > 0 then count_waiting(lane.name, -lane.claimed) end
  if lane.without_permit then
    waits[#waits + 1], waits[#waits + 2], waits[#waits + 3] = lane.name, lane.without_permit[1], lane.without_permit[2]
  end
end
save_gates()
save_ended()
save_counts()
for _, lane in ipairs(lanes) do
  if lane.left > 0 then rouse(lane.name, lane.left == 2) end
end
return reply
