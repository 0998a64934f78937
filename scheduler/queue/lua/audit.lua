#!lua flags=allow-oom
-- Check that stored data is consistent, and repair it if asked to. May be repeated.
-- KEYS[1] prefix of the queue's keys
-- ARGV[1] 1 to repair, else 0
-- ARGV[2…] what to check, in pairs:
--   'job', an id · 'member <key>', an id in that key · 'part <key>', the id that the key belongs to
--   'dedup', a key · 'lasting', a key that has to expire · 'lane', a lane · 'beside', a place beside one · 'counts', ''
-- returns {finding, where, …}
-- @include "lib/clock"
-- @include "lib/argument"
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
-- @include "lib/mend"

local repairs = ARGV[1] == '1'
if #ARGV % 2 == 0 then error('the arguments are not pairs') end
local LEASE_MS = 10000 -- of a running job without one: the process that runs it will renew it
local KEEP_MS = 3600000 -- for keys that belong to no job
local SOON_MS = 1000 -- keys that expire within this are left alone

local reply = {}
local function found(finding, where)
  reply[#reply + 1], reply[#reply + 2] = finding, where
  return repairs
end

local function home_of(rec)
  if rec.s == 'waiting' or rec.s == 'held' then return level_key(place_of(rec), rec.p) end
  if rec.s == 'delayed' then return delayed_key end
  if rec.s == 'running' then return leases_key end
  return rec.s == 'failed' and dead_key or finished_key
end

local function unclaimed(rec) return rec.s == 'waiting' or rec.s == 'held' or rec.s == 'delayed' end

local function score_in(key, id)
  local score = redis.pcall('ZSCORE', key, id)
  return tonumber(type(score) ~= 'table' and score or nil)
end

local function take_out(key, id)
  local p, place = string.match(key, ':(%d):(.+)$', #prefix)
  if p and key == level_key(place, p) then leave_level(place, p, { id }) else redis.call('ZREM', key, id) end
end

local function bring_home(id, rec)
  if rec.s == 'waiting' or rec.s == 'held' then
    make_ready(id, rec)
  elseif rec.s == 'delayed' then
    make_delayed(id, rec, tonumber(rec.u or 0))
  else
    redis.call('ZADD', leases_key, text(now_ms + LEASE_MS), id)
  end
end

local function audit_ended(id, rec)
  -- Only the rest of its time is left.
  local ended_ms = whole(rec.e, 0, now_ms) or now_ms
  local keep_ms = math.max(SOON_MS, ended_ms + keep_ms_of(rec.s, rec) - now_ms)
  local kept_keys = { record_key(id), payload_key(id), result_key(id), tickets_key(id), stream_key(id) }
  for _, key in ipairs(kept_keys) do
    if redis.call('PTTL', key) == -1 and found('no_expiry', key) then
      redis.call('PEXPIRE', key, text(keep_ms))
    end
  end
  local left_ms = redis.call('PTTL', record_key(id))
  local home = home_of(rec)
  if not score_in(home, id) and (left_ms == -1 or left_ms > SOON_MS) and found('unlisted', id) then
    redis.call('ZADD', home, text(now_ms + math.max(left_ms, SOON_MS)), id)
  end
end

local function audit_live(id, rec)
  local lasting = redis.call('PTTL', payload_key(id))
  if lasting == -2 then
    if found('no_payload', id) then
      end_job(id, rec, 'failed', 'payload_lost', error_json('payload_lost', 'the stored request has gone'))
    end
    return
  end
  if lasting >= 0 and found('expiring', payload_key(id)) then redis.call('PERSIST', payload_key(id)) end
  if redis.call('PTTL', record_key(id)) >= 0 and found('expiring', record_key(id)) then
    redis.call('PERSIST', record_key(id))
  end
  if not score_in(home_of(rec), id) and found('no_home', id) then bring_home(id, rec) end
  if rec.x and unclaimed(rec) and not score_in(deadlines_key, id) and found('no_deadline', id) then
    redis.call('ZADD', deadlines_key, rec.x, id)
  end
end

local function audit_job(id)
  if redis.call('EXISTS', record_key(id)) == 0 then return end -- it has expired since it was listed
  local rec = read(id, { 'q', 'u', 'e', unpack(ENDING) })
  if not (sound(rec) and (ENDED[rec.s] or rec.q)) then
    if redis.call('PTTL', record_key(id)) == -1 and found('damaged', id) then
      local live = rec and LIVE[rec.s]
      if live and rec.l and string.find(rec.p or '', '^%d$') then take_out(home_of(rec), id) end
      set_aside(id, rec, live and rec.s)
      redis.call('PEXPIRE', record_key(id), KEEP_MS)
    end
  elseif ENDED[rec.s] then
    audit_ended(id, rec)
  else
    audit_live(id, rec)
  end
end

local function audit_member(key, id)
  local score = score_in(key, id)
  if not score then return end
  local rec = read(id, { 's', 'p', 'l', 't', 'o', 'x', 'q' })
  local right
  if not rec then
    -- Ended jobs expire by themselves; tick removes them from the lists a little later.
    right = (key == finished_key or key == dead_key) and score < now_ms + SOON_MS
  elseif not sound(rec) then
    right = true -- the check of the job reports it
  else
    right = key == home_of(rec) or (key == deadlines_key and rec.x and unclaimed(rec))
  end
  if not right and found('stray', key .. ' ' .. id) then take_out(key, id) end
end

local function audit_part(key, id)
  if redis.call('EXISTS', record_key(id)) == 1 or redis.call('PTTL', key) ~= -1 then return end
  if found('orphan', key) then redis.call('PEXPIRE', key, KEEP_MS) end
end

local function audit_dedup(key)
  local owner = redis.pcall('GET', key)
  if type(owner) ~= 'string' or redis.call('PTTL', key) ~= -1 then return end
  local rec = read(owner, { 's', 'd', 't' })
  if rec and LIVE[rec.s] and rec.d and dedup_key(rec.t, rec.d) == key then return end
  if found('dedup_without_owner', key) then redis.call('DEL', key) end
end

local function audit_lasting(key)
  if redis.call('PTTL', key) == -1 and found('no_expiry', key) then redis.call('PEXPIRE', key, KEEP_MS) end
end

local function audit_bitmap(place)
  local bits, jobs = levels_of(place)
  if bits ~= level_bits(place) and found('bitmap', place) then mend_place(place) end
  return jobs
end

local function audit_count(field, n)
  if not n or tonumber(redis.call('HGET', meta_key, field) or 0) == n then return end
  if found('count', field) then redis.call('HSET', meta_key, field, text(n)) end
end

local function audit_lane(lane)
  local jobs = audit_bitmap(lane) + audit_bitmap(suspects_lane(lane))
  audit_count('n:' .. lane, count_of(lane, jobs, unclaimed_by_lane()))
end

for i = 2, #ARGV, 2 do
  local what, key = string.match(ARGV[i], '^(%S+) ?(.*)$')
  local id = ARGV[i + 1]
  if what == 'job' then audit_job(id)
  elseif what == 'member' then audit_member(key, id)
  elseif what == 'part' then audit_part(key, id)
  elseif what == 'dedup' then
    save_ended() -- releases the dedup keys of jobs that this call has ended
    audit_dedup(id)
  elseif what == 'lasting' then audit_lasting(id)
  elseif what == 'beside' then audit_bitmap(id)
  else
    save_ended()
    save_counts()
    if what == 'lane' then audit_lane(id) else audit_count('n', count_of_all()) end
  end
end
save_ended()
save_counts()
wake_lanes()
return reply
