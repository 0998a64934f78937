-- Delayed jobs that are due go to their lanes. Returns how many.
local function promote(limit)
  local ids = due(delayed_key, limit)
  for _, id in ipairs(ids) do
    local rec = read(id, { 's', 'q', unpack(ENDING) })
    redis.call('ZREM', delayed_key, id)
    if sound(rec) and rec.q and rec.s == 'delayed' then
      redis.call('HDEL', record_key(id), 'u')
      make_ready(id, rec)
    else
      if rec and rec.l then count_waiting(rec.l, -1) else add('n', -1) end
      set_aside(id, rec, 'delayed')
    end
  end
  return #ids
end
