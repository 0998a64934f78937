-- A job goes (back) to its lane, at the place that its rank gives it.
local function make_ready(id, rec)
  redis.call('HSET', record_key(id), 's', 'waiting')
  enter_level(rec.l, rec.p, id, tonumber(rec.q))
  if rec.x then redis.call('ZADD', deadlines_key, rec.x, id) end
end

local function make_delayed(id, rec, due_ms)
  redis.call('HSET', record_key(id), 's', 'delayed', 'u', text(due_ms))
  redis.call('ZADD', delayed_key, text(due_ms), id)
  if rec.x then redis.call('ZADD', deadlines_key, rec.x, id) end
end
