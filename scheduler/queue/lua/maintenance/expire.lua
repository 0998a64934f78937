-- Jobs whose deadlines have passed end, unless they run: their worker processes end those. Returns how many deadlines passed.
local function expire(limit)
  local ids = due(deadlines_key, limit)
  for _, id in ipairs(ids) do
    local rec = read(id, ENDING)
    redis.call('ZREM', deadlines_key, id)
    if sound(rec) and rec.s ~= 'running' and not ENDED[rec.s] then end_job(id, rec, 'expired', 'deadline') end
  end
  return #ids
end
