-- A job that can run enters its lane by its rank. It is held instead if its tenant has used up its limit, or has earlier jobs that
-- are held.
local function ready_state(lane, tenant)
  local gate = tenant_gate(tenant)
  if not gate or (gate.passable() and level_bits(held_lane(lane, tenant)) == 0) then return 'waiting' end
  return 'held'
end

local function make_ready(id, rec)
  rec.s = ready_state(rec.l, rec.t)
  redis.call('HSET', record_key(id), 's', rec.s)
  if rec.s == 'held' then
    hold(id, rec)
  else
    enter_level(place_of(rec), rec.p, id, tonumber(rec.q))
    to_wake[rec.l] = true
  end
  if rec.x then redis.call('ZADD', deadlines_key, rec.x, id) end
end

local function make_delayed(id, rec, due_ms)
  redis.call('HSET', record_key(id), 's', 'delayed', 'u', text(due_ms))
  redis.call('ZADD', delayed_key, text(due_ms), id)
  if rec.x then redis.call('ZADD', deadlines_key, rec.x, id) end
end
