#!lua flags=allow-oom
-- Lease the best jobs that are ready, over several lanes. May be repeated with the same claim id.
-- KEYS[1] prefix of the queue's keys
-- ARGV[1] claim id  ARGV[2] worker process  ARGV[3] lease, ms  ARGV[4] how many jobs at most
-- ARGV[5…] lane, how many of it at most, …
-- returns {more, {id, token, attempt, failures, max_attempts or '', priority, lane, tenant, waited ms,
--   remaining ms or '', result ttl ms or '', payload}, …}; more = 1: claimable work was left behind
-- @include "lib/clock"
-- @include "lib/record"
-- @include "lib/level"
-- @include "lib/count"
-- @include "lib/wake"
-- @include "lib/event"
-- @include "lib/ending"
-- @include "lib/garbage"

local REMEMBER_CLAIM_MS = 120000
local STARVED_EVERY = 20
local CHUNK = 32
local MAX_HINDERED = 256

local claim_id, worker = ARGV[1], ARGV[2]
local lease_ms, limit = tonumber(ARGV[3]), tonumber(ARGV[4])

local FIELDS = { 's', 'p', 'l', 't', 'q', 'x', 'n', 'f', 'a', 'g', 'd', 'm', 'j', 'k' }

local function entry(id, rec, token, payload)
  return {
    id, text(token), text(rec.n or 0), rec.f or '0', rec.a or '', rec.p, rec.l, rec.t or 'default',
    text(math.max(0, now_ms - math.floor(tonumber(rec.q) / 1000))),
    rec.x and text(tonumber(rec.x) - now_ms) or '', rec.g or '', payload,
  }
end

-- The reply to this very claim may have been lost.
local function repeated()
  local before = redis.call('GET', claimed_key(worker))
  if not before or string.sub(before, 1, #claim_id + 1) ~= claim_id .. '\n' then return nil end
  local reply = { 1 }
  for id, token in string.gmatch(before, '\n(%S+) (%d+)') do
    local rec = read(id, unpack(FIELDS))
    local payload = redis.call('GET', payload_key(id))
    if rec and rec.s == 'running' and rec.k == token and payload then
      reply[#reply + 1] = entry(id, rec, tonumber(token), payload)
    end
  end
  return reply
end

local before = repeated()
if before then return before end

-- A cursor walks one level of one lane.
local cursors, quotas = {}, {}
local aging_us = tonumber(redis.call('HGET', conf_key, 'aging_ms') or 30000) * 1000

local function head(cursor)
  if cursor.at > #cursor.ids then
    if cursor.drained then return nil end
    local stop = cursor.taken + cursor.chunk - 1
    local page = redis.call('ZRANGE', cursor.key, cursor.taken, stop, 'WITHSCORES')
    cursor.ids, cursor.at, cursor.drained = page, 1, #page < cursor.chunk * 2
    cursor.chunk = math.min(CHUNK, limit)
    if #page == 0 then return nil end
  end
  return cursor.ids[cursor.at], tonumber(cursor.ids[cursor.at + 1])
end

local paused = {}
for _, lane in ipairs(redis.call('SMEMBERS', paused_key)) do paused[lane] = true end
local lanes, fields = {}, { 'claims' }
for i = 5, #ARGV, 2 do
  if not paused[ARGV[i]] then
    lanes[#lanes + 1] = ARGV[i]
    fields[#fields + 1] = 'b:' .. ARGV[i]
    quotas[ARGV[i]] = tonumber(ARGV[i + 1])
  end
end
local meta = redis.call('HMGET', meta_key, unpack(fields))
local claims = tonumber(meta[1] or 0)
for i, lane in ipairs(lanes) do
  local bits = tonumber(meta[i + 1] or 0)
  for p = 9, 0, -1 do
    if has_level(bits, p) then
      cursors[#cursors + 1] = {
        lane = lane, p = p, key = level_key(lane, p), ids = {}, at = 1, taken = 0,
        chunk = #lanes == 1 and math.min(CHUNK, limit) or 1, picked = {},
        class = (p >= 8 or aging_us == 0) and 9 - p or 2, bonus = (9 - p) * aging_us,
      }
    end
  end
end

-- The next job by rank: 9, then 8, then whatever has the earliest enqueue time less its level's head start.
local function best()
  local chosen, chosen_rank
  for _, cursor in ipairs(cursors) do
    if quotas[cursor.lane] > 0 and (not chosen or cursor.class <= chosen.class) then
      local id, score = head(cursor)
      local rank = id and score + cursor.bonus
      if id and (not chosen or cursor.class < chosen.class or rank < chosen_rank) then
        chosen, chosen_rank = cursor, rank
      end
    end
  end
  return chosen
end

-- The oldest job that has waited past its bound.
local function starved()
  if aging_us == 0 then return nil end
  local chosen, chosen_score
  for _, cursor in ipairs(cursors) do
    if quotas[cursor.lane] > 0 and cursor.p < 8 then
      local id, score = head(cursor)
      if id and score + cursor.bonus < now_us and (not chosen or score < chosen_score) then
        chosen, chosen_score = cursor, score
      end
    end
  end
  return chosen
end

-- A name that a reply can carry and a claim can remember.
local function plain(name) return not string.find(name, '[^\33-\126]') end

-- Whether a job can run: nil, or what it has to become. Reads only.
local function hindrance(job)
  local rec = job.rec
  if not (sound(rec) and rec.q and rec.s == 'waiting' and rec.l == job.lane and tonumber(rec.p) == job.p
      and plain(job.id) and plain(rec.t or '')) then
    return 'garbage'
  end
  if rec.x and tonumber(rec.x) <= now_ms then return 'expired' end
  local payload = redis.pcall('GET', payload_key(job.id))
  if type(payload) ~= 'string' then return 'payload_lost' end
  job.payload = payload
end

-- Look at every record before the first write; what cannot run makes place for the next.
local runnable, hindered = {}, {}
while #runnable < limit and #hindered < MAX_HINDERED do
  local cursor = (claims + #runnable + 1) % STARVED_EVERY == 0 and starved() or best()
  if not cursor then break end
  local job = { id = cursor.ids[cursor.at], lane = cursor.lane, p = cursor.p }
  cursor.at, cursor.taken = cursor.at + 2, cursor.taken + 1
  cursor.picked[#cursor.picked + 1] = job.id
  job.rec = read(job.id, unpack(FIELDS))
  job.hindrance = hindrance(job)
  if job.hindrance then
    hindered[#hindered + 1] = job
  else
    runnable[#runnable + 1] = job
    quotas[cursor.lane] = quotas[cursor.lane] - 1
  end
end

-- Whether work is left is known before the levels change under the cursors.
local more, left = 0, {}
for _, cursor in ipairs(cursors) do
  if not left[cursor.lane] and redis.call('ZCARD', cursor.key) > cursor.taken then
    left[cursor.lane], more = true, 1
  end
end

for _, cursor in ipairs(cursors) do
  if #cursor.picked > 0 then leave_level(cursor.lane, cursor.p, unpack(cursor.picked)) end
end
for _, job in ipairs(hindered) do
  if job.hindrance == 'garbage' then
    count_waiting(job.lane, -1)
    set_aside(job.id, job.rec, 'waiting')
  elseif job.hindrance == 'expired' then
    end_job(job.id, job.rec, 'expired', 'deadline')
  else
    end_job(job.id, job.rec, 'failed', 'payload_lost', error_json('payload_lost', 'the stored request has gone'))
  end
end

local reply, remembered, leases, last_token = { more }, { claim_id }, {}, 0
if #runnable > 0 then
  last_token = redis.call('HINCRBY', meta_key, 'token', #runnable)
  redis.call('HINCRBY', meta_key, 'claims', #runnable)
end
local claimed_at, lease_end = text(now_ms), text(now_ms + lease_ms)
for i, job in ipairs(runnable) do
  local rec, token = job.rec, last_token - #runnable + i
  rec.n = (rec.n or 0) + 1
  redis.call('HSET', record_key(job.id), 's', 'running', 'k', text(token), 'w', worker, 'c', claimed_at, 'n', rec.n)
  leases[#leases + 1] = lease_end
  leases[#leases + 1] = job.id
  if rec.x then redis.call('ZREM', deadlines_key, job.id) end
  count_waiting(rec.l, -1)
  remembered[#remembered + 1] = job.id .. ' ' .. text(token)
  reply[#reply + 1] = entry(job.id, rec, token, job.payload)
end
if #leases > 0 then
  redis.call('ZADD', leases_key, unpack(leases))
  redis.call('SET', claimed_key(worker), table.concat(remembered, '\n'), 'PX', REMEMBER_CLAIM_MS)
end
save_counts()
for lane in pairs(left) do wake(lane) end
return reply
