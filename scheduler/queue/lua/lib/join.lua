-- If a live job has the dedup key, the caller joins it. The job then satisfies both callers: it takes the higher priority, the
-- later deadline, the earlier due time, the longer retention and the larger number of attempts.
local LIVE_ALIAS_MS = 604800000 -- the end of the job sets it again

local function raise_priority(id, rec, priority)
  if priority <= tonumber(rec.p) then return end
  if rec.s == 'waiting' or rec.s == 'held' then
    move_level(place_of(rec), rec.p, priority, id, tonumber(rec.q))
  end
  redis.call('HSET', record_key(id), 'p', priority)
  rec.p = priority
  if rec.s == 'delayed' then delayed_changed() end
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
  -- A caller must not shorten the back-off of a retry.
  if rec.s ~= 'delayed' or rec.n then return end
  if delay_ms == '' then delay_ms = 0 end
  local due = now_ms + delay_ms
  if due >= (tonumber(rec.u) or math.huge) then return end
  delayed_changed()
  if due > now_ms then
    redis.call('ZADD', delayed_key, text(due), id)
    redis.call('HSET', record_key(id), 'u', text(due), 'q', text(unique_us() + delay_ms * 1000))
  else
    redis.call('ZREM', delayed_key, id)
    rec.q = unique_us()
    redis.call('HSET', record_key(id), 'q', text(rec.q))
    redis.call('HDEL', record_key(id), 'u')
    make_ready(id, rec)
  end
end

-- asked_ms, asked: '' asks for what the queue's settings say.
local function keep_longer(id, rec, asked_ms)
  if not rec.g and asked_ms == '' then return end
  local own_ms = keeping().result_ms
  local wanted_ms = asked_ms == '' and own_ms or asked_ms
  if wanted_ms > (tonumber(rec.g) or own_ms) then redis.call('HSET', record_key(id), 'g', text(wanted_ms)) end
end

local function allow_attempts(id, rec, asked)
  if not rec.a and asked == '' then return end
  local own = redis.call('HMGET', conf_key, 'max_attempts:' .. rec.l, 'max_attempts')
  local usual = whole(own[1], 1, 1000) or whole(own[2], 1, 1000) or DEFAULT_MAX_ATTEMPTS
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
