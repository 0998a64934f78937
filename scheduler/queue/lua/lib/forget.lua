-- Nothing of an ended job is kept, and nothing else names it.
local function forget(id, rec)
  -- A finished answer of mode window still owns its key.
  if rec and rec.d then
    local key = dedup_key(rec.t, rec.d)
    if redis.pcall('GET', key) == id then redis.call('DEL', key) end
  end
  redis.call('ZREM', dead_key, id)
  redis.call('ZREM', finished_key, id)
  redis.call('UNLINK', record_key(id), payload_key(id), result_key(id), tickets_key(id), stream_key(id))
end

-- Of the dead letters the oldest go first. Returns how many have gone.
local function bound_dead(most, at_once)
  local over = redis.call('ZCARD', dead_key) - most
  if over <= 0 then return 0 end
  local ids = redis.call('ZRANGE', dead_key, 0, text(math.min(over, at_once) - 1))
  for _, id in ipairs(ids) do forget(id) end
  add('t:dead_dropped', #ids)
  return #ids
end
