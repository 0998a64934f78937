-- The order of claiming: 9, then 8, then whatever has the earliest enqueue time less its level's head start.
local CHUNK = 32

local aging_us = tonumber(redis.call('HGET', conf_key, 'aging_ms') or 30000) * 1000

-- The class of a level, and what it adds to the enqueue time in that class.
local function order_of(p) return (p >= URGENT or aging_us == 0) and 9 - p or 2, (9 - p) * aging_us end

-- Cursors, each of which walks one level of a lane, or of the place beside it; chunk: how many jobs to read at first.
local function open_cursors(cursors, lane, bits, chunk, place)
  place = place or lane
  for p = 9, 0, -1 do
    if has_level(bits, p) then
      local class, bonus = order_of(p)
      cursors[#cursors + 1] = {
        lane = lane, place = place, p = p, key = level_key(place, p), ids = {}, at = 1, taken = 0, chunk = chunk,
        picked = {}, class = class, bonus = bonus,
      }
    end
  end
  return cursors
end

-- The next job of a level, and its score. wanted: how many jobs are wanted in all.
local function head(cursor, wanted)
  if cursor.at > #cursor.ids then
    if cursor.drained then return nil end
    local stop = cursor.taken + cursor.chunk - 1
    local page = redis.call('ZRANGE', cursor.key, cursor.taken, stop, 'WITHSCORES')
    cursor.ids, cursor.at, cursor.drained = page, 1, #page < cursor.chunk * 2
    cursor.chunk = math.min(CHUNK, math.max(wanted, 2 * cursor.chunk))
    if #page == 0 then return nil end
  end
  return cursor.ids[cursor.at], tonumber(cursor.ids[cursor.at + 1])
end

-- Take the next job of a level; the caller takes those that were picked from the level at the end.
local function pick(cursor)
  local id = cursor.ids[cursor.at]
  cursor.at, cursor.taken = cursor.at + 2, cursor.taken + 1
  cursor.picked[#cursor.picked + 1] = id
  return id
end

local function leave_picked(cursors)
  for _, cursor in ipairs(cursors) do
    if #cursor.picked > 0 then leave_level(cursor.place, cursor.p, unpack(cursor.picked)) end
  end
end

-- The cursor whose next job is to be claimed first, of those that fits(cursor) takes; and that job's rank in its class.
local function best(cursors, wanted, fits)
  local chosen, chosen_rank
  for _, cursor in ipairs(cursors) do
    if (not chosen or cursor.class <= chosen.class) and (not fits or fits(cursor)) then
      local id, score = head(cursor, wanted)
      local rank = id and score + cursor.bonus
      if id and (not chosen or cursor.class < chosen.class or rank < chosen_rank) then
        chosen, chosen_rank = cursor, rank
      end
    end
  end
  return chosen, chosen_rank
end
