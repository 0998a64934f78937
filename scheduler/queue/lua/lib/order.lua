-- The order of claiming: 9, then 8, then whatever has the earliest enqueue time less its level's head start.
local CHUNK = 32
local LAST = math.huge -- the class of who is out of the running

local aging_us = tonumber(redis.call('HGET', conf_key, 'aging_ms') or 30000) * 1000

-- The class of a level, and what it adds to the enqueue time in that class.
local CLASS, BONUS = {}, {}
for p = 0, 9 do CLASS[p], BONUS[p] = (p >= URGENT or aging_us == 0) and 9 - p or 2, (9 - p) * aging_us end

-- Add cursors, each of which walks one level of a lane, or of the place beside it.
local function open_cursors(cursors, lane, bits, place)
  if bits == 0 then return end
  place = place or lane
  for p = 9, 0, -1 do
    if has_level(bits, p) then
      cursors[#cursors + 1] = {
        lane = lane, place = place, p = p, key = level_key(place, p), taken = 0, class = CLASS[p], bonus = BONUS[p],
      }
    end
  end
end

-- Go to the next job of a level: its id, its score, and its rank in the level's class.
local function advance(cursor)
  if not cursor.ids or cursor.at > #cursor.ids then
    if cursor.drained then
      cursor.id, cursor.class = nil, LAST
      return
    end
    local page = redis.call('ZRANGE', cursor.key, cursor.taken, cursor.taken + cursor.chunk - 1, 'WITHSCORES')
    cursor.ids, cursor.at, cursor.drained = page, 1, #page < cursor.chunk * 2
    cursor.chunk = math.min(CHUNK, 2 * cursor.chunk)
  end
  cursor.id, cursor.score = cursor.ids[cursor.at], tonumber(cursor.ids[cursor.at + 1])
  if cursor.id then cursor.rank = cursor.score + cursor.bonus else cursor.class = LAST end
end

-- Whether there is more in a level than was picked.
local function has_more(cursor)
  if cursor.at <= #cursor.ids then return true end
  return not cursor.drained and redis.call('ZCARD', cursor.key) > cursor.taken
end

local function leave_picked(cursors)
  for _, cursor in ipairs(cursors) do
    if cursor.picked then leave_level(cursor.place, cursor.p, cursor.picked, cursor.at <= #cursor.ids) end
  end
end

-- Cursors in the order of their next jobs, a binary heap: a claim over many lanes looks at few of them for each job. Where a
-- cursor stands only ever goes down: what comes next in a level is later, and who is out of the running stands last.
local function precedes(one, other)
  if one.class ~= other.class then return one.class < other.class end
  return one.class ~= LAST and one.rank < other.rank
end

local function sift_down(heap, at)
  local cursor = heap[at]
  while true do
    local child = 2 * at
    if not heap[child] then break end
    if heap[child + 1] and precedes(heap[child + 1], heap[child]) then child = child + 1 end
    if not precedes(heap[child], cursor) then break end
    heap[at], heap[child].stands = heap[child], at
    at = child
  end
  heap[at], cursor.stands = cursor, at
end

-- wanted: how many jobs are wanted in all, and so how many to read at first.
local function make_heap(cursors, wanted)
  local heap = {}
  local chunk = math.min(CHUNK, math.max(1, math.ceil(2 * wanted / math.max(1, #cursors))))
  for at, cursor in ipairs(cursors) do
    cursor.chunk, cursor.stands, heap[at] = chunk, at, cursor
    advance(cursor)
  end
  for at = #heap, 1, -1 do sift_down(heap, at) end
  return heap
end

-- Take the next job of a level; the caller takes those that were picked from the level at the end.
local function pick(heap, cursor)
  local id = cursor.id
  cursor.at, cursor.taken = cursor.at + 2, cursor.taken + 1
  cursor.picked = cursor.picked or {}
  cursor.picked[#cursor.picked + 1] = id
  advance(cursor)
  sift_down(heap, cursor.stands)
  return id
end

-- The cursor whose next job is to be claimed first, of those that fits(cursor) takes. What does not fit once will not later.
local function best(heap, fits)
  while heap[1] and heap[1].class ~= LAST do
    if fits(heap[1]) then return heap[1] end
    heap[1].class = LAST
    sift_down(heap, 1)
  end
end
