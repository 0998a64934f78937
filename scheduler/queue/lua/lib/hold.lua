-- A job that its tenant may not begin yet stands in a lane of its own, which tick looks at when the gate opens.
local function hold(id, rec)
  local lane = held_lane(rec.l, rec.t)
  if level_bits(lane) == 0 then redis.call('ZADD', limited_key, tenant_gate(rec.t).passable_at_ms(), lane) end
  enter_level(lane, rec.p, id, tonumber(rec.q))
end
