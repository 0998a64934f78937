-- What every end of a job does.

-- What is the same for all jobs that a script ends goes in one command, by save_ended(): key -> score, job, score, job, …;
-- the keys of payloads that nobody needs any more; and dedup keys that are given up, with those who do.
local ended, spent, given_up, owners = {}, {}, {}, {}

local function save_ended()
  for key, members in pairs(ended) do each_chunk('ZADD', key, members) end
  if ended[dead_key] then bound_dead(keeping().max_dead, #ended[dead_key]) end
  if #given_up > 0 then
    -- The owner alone releases its dedup key; it may have got another one in this very script.
    for i = 1, #given_up, 1000 do
      local now_owned = redis.call('MGET', unpack(given_up, i, math.min(#given_up, i + 999)))
      for j = 1, #now_owned do
        if now_owned[j] == owners[i + j - 1] then spent[#spent + 1] = given_up[i + j - 1] end
      end
    end
  end
  save_spare(spent)
  unlink(spent)
  ended, spent, given_up, owners = {}, {}, {}, {}
end

-- Until save_ended() a key that is given up names a job that has ended, which is as good as none. A done job of mode window
-- keeps it for a while.
local function release_dedup(id, rec, state)
  if not rec.d then return end
  local key = dedup_key(rec.t, rec.d)
  if rec.m == 'window' and state == 'done' then
    if redis.pcall('GET', key) == id then redis.call('PEXPIRE', key, text(keeping().window_ms)) end
  else
    given_up[#given_up + 1], owners[#owners + 1] = key, id
  end
end

local scores, spans = {}, {} -- of what is kept for so many ms: when it goes, and that number

-- Keep what belongs to an ended job for keep_ms; its request only where it may run again.
local function retain(id, rec, state, keep_ms, reason)
  if not scores[keep_ms] then scores[keep_ms], spans[keep_ms] = text(now_ms + keep_ms), text(keep_ms) end
  local lasts = spans[keep_ms]
  redis.call('PEXPIRE', stream_key(id), lasts)
  redis.call('PEXPIRE', record_key(id), lasts)
  if rec.j then
    redis.call('PEXPIRE', tickets_key(id), lasts)
    keep_aliases(id, rec, lasts)
  end
  if state == 'done' or state == 'cancelled' and reason == 'replaced' then
    spent[#spent + 1] = payload_key(id)
  else
    redis.call('PEXPIRE', payload_key(id), lasts)
    if state ~= 'failed' then lay_by(id) end
  end
  local key = state == 'failed' and dead_key or finished_key
  local members = ended[key] or {}
  ended[key], members[#members + 1], members[#members + 2] = members, scores[keep_ms], id
end

-- Take a live job from where it stands.
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

-- Fields that end_job wants to find in rec.
local ENDING = { 's', 'p', 'l', 't', 'x', 'n', 'd', 'm', 'j', 'k', 'g', 'o' }

-- Write the end of a job that stands nowhere any more. A fresh token shuts out whoever runs it.
local function close(id, rec, state, reason, error)
  local token = next_token()
  local rest = error and ',"error":' .. error or ',"reason":' .. cjson.encode(reason)
  tell(channel_key(id), event_json(id, token, 1, state, rec.n, rest))
  redis.call('HSET', record_key(id), 's', state, 'e', text(now_ms), 'r', reason, 'k', text(token), 'z', 1)
  if error then redis.call('HSET', record_key(id), 'i', error) end
  retain(id, rec, state, keep_ms_of(state, rec.g), reason)
  release_dedup(id, rec, state)
  add('t:' .. state, 1)
end

-- End a live job whose record is sound from inside a script.
local function end_job(id, rec, state, reason, error)
  detach(id, rec)
  close(id, rec, state, reason, error)
end
