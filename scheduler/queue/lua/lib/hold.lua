-- The jobs that their tenant may not start yet wait in a lane of their own, from which tick releases them.
local function hold(id, rec)
  local lane = held_lane(rec.l, rec.t)
  if level_bits(lane) == 0 then redis.call('ZADD', limited_key, tenant_gate(rec.t).passable_at_ms(), lane) end
  enter_level(lane, rec.p, id, tonumber(rec.q))
end
