-- Delete all of an ended job, and every reference to it.
local function forget(id, rec)
  -- A done job of mode window still owns its dedup key.
  if rec and rec.d then
    local key = dedup_key(rec.t, rec.d)
    if redis.pcall('GET', key) == id then redis.call('DEL', key) end
  end
  redis.call('ZREM', dead_key, id)
  redis.call('ZREM', finished_key, id)
  redis.call('UNLINK', record_key(id), payload_key(id), result_key(id), tickets_key(id), stream_key(id))
end

-- Forget finished jobs beyond `most`. They are listed by the time at which they expire. Of the next to expire and the last to
-- expire, the one that ended first goes, so that jobs with a long retention do not push out new ones. Returns how many have gone.
local function bound_finished(most, at_once)
  local over = math.min(at_once, redis.call('ZCARD', finished_key) - most)
  if over <= 0 then return 0 end
  local soonest = redis.call('ZRANGE', finished_key, 0, text(over - 1))
  local latest = redis.call('ZREVRANGE', finished_key, 0, text(over - 1))
  local read_ends = {}
  local function ended(id)
    if not read_ends[id] then
      local rec = read(id, { 's', 'e', 't', 'd' }) or {}
      rec.at = tonumber(rec.e) or 0
      read_ends[id] = rec
    end
    return read_ends[id]
  end
  local first, last = 1, 1
  for _ = 1, over do
    local id = soonest[first]
    if ended(latest[last]).at < ended(id).at then
      id, last = latest[last], last + 1
    else
      first = first + 1
    end
    forget(id, ended(id))
  end
  add('t:finished_dropped', over)
  return over
end

-- Forget dead letters beyond `most`, the oldest first. Returns how many have gone.
local function bound_dead(most, at_once)
  local over = redis.call('ZCARD', dead_key) - most
  if over <= 0 then return 0 end
  local ids = redis.call('ZRANGE', dead_key, 0, text(math.min(over, at_once) - 1))
  for _, id in ipairs(ids) do forget(id) end
  add('t:dead_dropped', #ids)
  return #ids
end
