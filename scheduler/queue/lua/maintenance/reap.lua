-- Running jobs whose leases have ended go back to their lanes, or end.
local LOST = 'the worker process that ran it did not renew its lease'
local POISON = 'it has lost its worker process %d times, at last as the only suspect that ran there'

local function retry_lost(id, rec, is_excused)
  if not is_excused then rec.o = redis.call('HINCRBY', record_key(id), 'o', 1) end
  local token = next_token()
  redis.call('HSET', record_key(id), 'k', text(token))
  local rest = ',"error":' .. error_json('lease_lost', LOST) .. ',"delay_s":0'
  emit(id, { event_json(id, token, 1, 'retrying', rec.n, rest) }, 1, 1)
  redis.call('PEXPIRE', stream_key(id), RUNNING_STREAM_MS)
  remember(id, rec.y, 'lease_lost', rec.w, rec.n)
  make_ready(id, rec)
  count_waiting(rec.l, 1)
  add('t:lost', 1)
end

-- is_excused: the lease ended because of Redis, so the job is not suspected of having killed its worker process.
local function end_lease(id, rec, is_excused)
  count_waste(id, rec.k, true)
  if rec.x and tonumber(rec.x) <= now_ms then
    end_job(id, rec, 'expired', 'deadline')
  elseif is_suspect(rec) and not is_excused then
    -- Its process ran no other suspect: see claim.
    rec.o = redis.call('HINCRBY', record_key(id), 'o', 1)
    add('t:lost', 1)
    add('t:quarantined', 1)
    end_job(id, rec, 'failed', 'poison', error_json('poison', string.format(POISON, rec.o)))
  else
    retry_lost(id, rec, is_excused)
  end
end

-- Returns how many leases have ended.
local function reap(limit, excused_until)
  local ids = due(leases_key, limit)
  for _, id in ipairs(ids) do
    local rec, lease_end = read(id, { 's', 'q', 'w', 'y', unpack(ENDING) }), redis.call('ZSCORE', leases_key, id)
    redis.call('ZREM', leases_key, id)
    if sound(rec) and rec.q and rec.s == 'running' then
      end_lease(id, rec, tonumber(lease_end) < excused_until)
    elseif not (sound(rec) and ENDED[rec.s]) then
      set_aside(id, rec, 'running')
    end
  end
  return #ids
end
