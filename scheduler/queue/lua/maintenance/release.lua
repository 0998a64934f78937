-- Held jobs that their tenants' limits allow now go to their lanes.

-- The level and rank of the job that was last released from a held lane, while it waits for a worker process.
local function last_released(held)
  local id = redis.call('HGET', released_key, held)
  local rec = id and read(id, { 's', 'p', 'l', 'q' })
  if not (sound(rec) and rec.q and rec.s == 'waiting') then return nil end
  local p = tonumber(rec.p)
  return { p = p, rank = rec.q + handicap_of(p) }
end

local function release_job(id, held)
  local rec = read(id, { 's', 'q', unpack(ENDING) })
  if sound(rec) and rec.q and rec.s == 'held' and place_of(rec) == held then
    redis.call('HSET', record_key(id), 's', 'waiting')
    rec.s = 'waiting'
    enter_level(place_of(rec), rec.p, id, tonumber(rec.q))
  else
    count_waiting(lane_of(held), -1)
    set_aside(id, rec, 'held')
  end
end

-- The more held lanes there are, the less often a blocked one is checked: its jobs wait for those released before them.
local BLOCKED_MS = 250
local LANES_A_CHECK = 100
local function blocked_ms() return BLOCKED_MS * math.ceil(redis.call('ZCARD', limited_key) / LANES_A_CHECK) end

local function schedule_check(held, gate, is_blocked)
  if level_bits(held) == 0 then
    redis.call('ZREM', limited_key, held)
  elseif gate and not gate.passable() then
    redis.call('ZADD', limited_key, gate.passable_at_ms(), held)
  else
    redis.call('ZADD', limited_key, text(now_ms + (is_blocked and blocked_ms() or 0)), held)
  end
end

-- Release as many jobs of a tenant as it may start now, in the order of claiming over its lanes. Returns how many.
local function release_tenant(tenant, lanes, limit)
  local gate, cursors, last = tenant_gate(tenant), {}, {}
  for _, held in ipairs(lanes) do
    open_cursors(cursors, { name = held }, level_bits(held))
    last[held] = gate and last_released(held)
  end
  -- While jobs released before wait for a worker process, only more urgent ones are released after them.
  local blocked = {}
  local function outranks(cursor)
    local other = last[cursor.place.name]
    if not other then return true end
    local strict = is_strict(cursor.p) or is_strict(other.p)
    if strict and cursor.p > other.p then return true end
    if (cursor.p == other.p or not strict) and (rank_of(cursor) or math.huge) < other.rank then return true end
    blocked[cursor.place.name] = true
    return false
  end
  local order, released, newest = make_order(cursors, limit), {}, {}
  while #released < limit and (not gate or gate.passable()) do
    local cursor = best(order, outranks)
    if not cursor then break end
    local job = { held = cursor.place.name, id = pick(cursor) }
    released[#released + 1], newest[job.held] = job, job.id
    -- For this loop only, and not saved: claim makes the charge that counts.
    if gate then gate.charge(estimate_tokens(request_bytes(job.id))) end
  end
  leave_picked(cursors)
  for _, job in ipairs(released) do release_job(job.id, job.held) end
  for _, held in ipairs(lanes) do
    schedule_check(held, gate, blocked[held])
    if newest[held] then
      wake(lane_of(held))
      if level_bits(held) > 0 then redis.call('HSET', released_key, held, newest[held]) end
    end
  end
  return #released
end

-- Once limits have changed, jobs of any held lane may have to wait no longer: all are checked, some of them a call.
-- Returns whether there are more.
local CHECKS_A_CALL = 200
local function check_all_once_limits_change()
  local bookmark = redis.call('HGET', meta_key, 'limits changed')
  if not bookmark then return false end
  local held, next_bookmark = walk('ZSCAN', limited_key, bookmark, CHECKS_A_CALL)
  for i = 1, #held, 2 do redis.call('ZADD', limited_key, 'XX', 0, held[i]) end
  if next_bookmark then
    redis.call('HSET', meta_key, 'limits changed', next_bookmark)
  else
    redis.call('HDEL', meta_key, 'limits changed')
  end
  return next_bookmark
end

-- Returns how many jobs were released.
local function release(limit)
  local tenants, lanes, n = {}, {}, 0
  for _, held in ipairs(due(limited_key, limit)) do
    local tenant = string.match(held, '%S+$')
    if not lanes[tenant] then
      tenants[#tenants + 1], lanes[tenant] = tenant, {}
    end
    table.insert(lanes[tenant], held)
  end
  for _, tenant in ipairs(tenants) do
    if n < limit then n = n + release_tenant(tenant, lanes[tenant], limit - n) end
  end
  return n
end
