-- The end of a job: every job ends in conclude().

-- What a script does once for all the jobs it ends, in save_ended(): list them (key -> score, job, …), delete requests that
-- cannot run again, and release dedup keys that their owners still have.
local listed, unwanted, released_dedup, dedup_owners = {}, {}, {}, {}

local function save_ended()
  for key, members in pairs(listed) do each_chunk('ZADD', key, members) end
  if listed[dead_key] then bound_dead(keeping().max_dead, #listed[dead_key]) end
  -- This script may have given a key to another job since.
  for i = 1, #released_dedup, 1000 do
    local owners = redis.call('MGET', unpack(released_dedup, i, math.min(#released_dedup, i + 999)))
    for j = 1, #owners do
      if owners[j] == dedup_owners[i + j - 1] then unwanted[#unwanted + 1] = released_dedup[i + j - 1] end
    end
  end
  save_spare_requests(unwanted)
  unlink(unwanted)
  listed, unwanted, released_dedup, dedup_owners = {}, {}, {}, {}
end

-- Until save_ended() a released key names an ended job, which counts as free. A done job of mode window keeps its key for a while.
local function release_dedup(id, rec, state)
  if not rec.d then return end
  local key = dedup_key(rec.t, rec.d)
  if rec.m == 'window' and state == 'done' then
    if redis.pcall('GET', key) == id then redis.call('PEXPIRE', key, text(keeping().window_ms)) end
  else
    released_dedup[#released_dedup + 1], dedup_owners[#dedup_owners + 1] = key, id
  end
end

-- By retention in ms, as text: the time at which it is over, and itself.
local scores, spans = {}, {}

-- Keep what belongs to an ended job for keep_ms; its request only if the job can be requeued.
local function retain(id, rec, state, reason, keep_ms)
  if not scores[keep_ms] then scores[keep_ms], spans[keep_ms] = text(now_ms + keep_ms), text(keep_ms) end
  local span = spans[keep_ms]
  redis.call('PEXPIRE', stream_key(id), span)
  redis.call('PEXPIRE', record_key(id), span)
  if rec.j then
    redis.call('PEXPIRE', tickets_key(id), span)
    keep_aliases(id, rec, span)
  end
  if state == 'done' or state == 'cancelled' and reason == 'replaced' then
    unwanted[#unwanted + 1] = payload_key(id)
  else
    redis.call('PEXPIRE', payload_key(id), span)
    if state ~= 'failed' then spare_request(id) end
  end
  local key = state == 'failed' and dead_key or finished_key
  local members = listed[key] or {}
  listed[key], members[#members + 1], members[#members + 2] = members, scores[keep_ms], id
end

local ended_at = text(now_ms)

-- End a job that the caller has taken from its place.
-- reason: nil for a result  keep_ms: see keep_ms_of  event: the terminal event, JSON, nil if the caller does not publish it
-- …: the other fields to write to the record: name, value, …
local function conclude(id, rec, state, reason, keep_ms, event, ...)
  if event then tell(channel_key(id), event) end
  redis.call('HSET', record_key(id), 's', state, 'e', ended_at, ...)
  retain(id, rec, state, reason, keep_ms)
  release_dedup(id, rec, state)
  add('t:' .. state, 1)
end

-- Take a live job from its place.
local function detach(id, rec)
  if rec.s == 'waiting' or rec.s == 'held' then
    leave_level(place_of(rec), rec.p, { id })
  elseif rec.s == 'delayed' then
    redis.call('ZREM', delayed_key, id)
  elseif rec.s == 'running' then
    redis.call('ZREM', leases_key, id)
    tell(control_key, cjson.encode({ cancel = id, token = rec.k }))
  end
  if rec.s ~= 'running' then count_waiting(rec.l, -1) end
  if rec.x then redis.call('ZREM', deadlines_key, id) end
end

-- The fields that end_job needs in rec.
local ENDING = { 's', 'p', 'l', 't', 'x', 'n', 'd', 'm', 'j', 'k', 'g', 'o' }

-- End a job that has no place any more. error: JSON, for a failure. A new token shuts out the worker process that runs it.
local function end_detached_job(id, rec, state, reason, error)
  local token = next_token()
  local rest = error and ',"error":' .. error or ',"reason":' .. cjson.encode(reason)
  local event = event_json(id, token, 1, state, rec.n, rest)
  if error then redis.call('HSET', record_key(id), 'i', error) end
  conclude(id, rec, state, reason, keep_ms_of(state, rec), event, 'r', reason, 'k', text(token), 'z', 1)
end

-- End a live job whose record is sound.
local function end_job(id, rec, state, reason, error)
  detach(id, rec)
  end_detached_job(id, rec, state, reason, error)
end
