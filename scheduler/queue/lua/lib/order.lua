-- The order of claiming: 9, then 8, then whatever has the earliest enqueue time less its level's head start.
local CHUNK = 32

-- Add cursors, each of which walks one level of a place, the less urgent first. place: its name, and its lane, which is whatever
-- the caller knows that by. Eight fields and no more: a table with nine takes twice the memory, and there are many cursors.
-- Of a cursor that has not been read, or whose page is used up, the rank is not known (nil); of one at its end it is false.
local NONE = {}
local function open_cursors(cursors, place, bits)
  local p = 0
  while bits > 0 do
    local used = bits % 2
    if used == 1 then
      cursors[#cursors + 1] = { place = place, p = p, ids = NONE, at = 1, drained = false, picked = NONE, rank = nil, floor = 0 }
    end
    bits, p = (bits - used) / 2, p + 1
  end
end

-- How many jobs of a level are read at first; then as many again as were picked.
local first_chunk = 1

local function read_page(cursor)
  local from, chunk = #cursor.picked, first_chunk
  if from > chunk then chunk = from < CHUNK and from or CHUNK end
  cursor.ids = redis.call('ZRANGE', level_key(cursor.place.name, cursor.p), from, from + chunk - 1, 'WITHSCORES')
  cursor.at, cursor.drained = 1, #cursor.ids < 2 * chunk
end

-- The rank of the next job of a level, false where there is none.
local function rank_of(cursor)
  if cursor.rank == nil then
    if not cursor.drained then read_page(cursor) end
    local score = cursor.ids[cursor.at + 1]
    cursor.rank = score and score + handicap_of(cursor.p) or false
  end
  return cursor.rank
end

-- Whether there is more in a level than was picked; nil where it takes a look.
local function known_more(cursor)
  if cursor.ids[cursor.at] then return true end
  if cursor.drained then return false end
end

local function has_more(cursor)
  local more = known_more(cursor)
  if more == nil then more = redis.call('ZCARD', level_key(cursor.place.name, cursor.p)) > #cursor.picked end
  return more
end

local function leave_picked(cursors)
  for i = 1, #cursors do
    local cursor = cursors[i]
    if cursor.picked ~= NONE then leave_level(cursor.place.name, cursor.p, cursor.picked, known_more(cursor)) end
  end
end

-- The cursors of one class in the order of their next jobs, a binary heap: a claim over many lanes looks at few of them for
-- each job; of equal ranks the higher level goes first. It is kept by a floor that a cursor's rank may have left upwards since: that is seen when it comes to the top.
local function sift_down(heap, at)
  local cursor, last = heap[at], #heap
  local floor, p = cursor.floor, cursor.p
  while 2 * at <= last do
    local child = 2 * at
    local lesser, other = heap[child], heap[child + 1]
    if other and (other.floor < lesser.floor or other.floor == lesser.floor and other.p > lesser.p) then
      child, lesser = child + 1, other
    end
    if floor < lesser.floor or floor == lesser.floor and p >= lesser.p then break end
    heap[at] = lesser
    at = child
  end
  heap[at] = cursor
end

local function drop_first(heap)
  local last = #heap
  heap[1] = heap[last]
  heap[last] = nil
  if last > 2 then sift_down(heap, 1) end
end

-- The order of the jobs before all cursors. wanted: how many are wanted in all, and so how many to read at first.
local function make_order(cursors, wanted)
  first_chunk = math.min(CHUNK, math.max(1, math.ceil(2 * wanted / math.max(1, #cursors))))
  return { cursors = cursors, next_p = 9, heap = {} }
end

-- Go on to the next class, with those of its cursors that fits(cursor) takes.
local function go_on(order, fits)
  local cursors, heap, highest = order.cursors, order.heap, order.next_p
  local lowest = is_strict(highest) and highest or 0
  for i = 1, #cursors do
    local cursor = cursors[i]
    if cursor.p >= lowest and cursor.p <= highest and fits(cursor) and rank_of(cursor) then
      heap[#heap + 1], cursor.floor = cursor, cursor.rank
    end
  end
  for at = math.floor(#heap / 2), 1, -1 do sift_down(heap, at) end
  order.next_p = lowest - 1
end

-- Whether all cursors have been looked at, and the rank of none is less.
local function none_before(order, rank)
  local first = order.heap[1]
  return order.next_p < 0 and not (first and first.floor < rank)
end

-- The cursor whose next job is to be claimed first, of those that fits(cursor) takes. What does not fit once will not later, so
-- its level is not read.
local function best(order, fits)
  local heap = order.heap
  while true do
    local cursor = heap[1]
    if not cursor then
      if order.next_p < 0 then return nil end
      go_on(order, fits)
    elseif cursor.rank == cursor.floor then
      if fits(cursor) then return cursor end
      drop_first(heap)
    elseif not fits(cursor) or not rank_of(cursor) then
      drop_first(heap)
    else
      cursor.floor = cursor.rank
      sift_down(heap, 1)
    end
  end
end

-- Take the next job of a level; the caller takes those that were picked from the level at the end.
local function pick(cursor)
  local ids, at, picked = cursor.ids, cursor.at, cursor.picked
  local id, score = ids[at], ids[at + 3]
  if picked == NONE then
    picked = {}
    cursor.picked = picked
  end
  picked[#picked + 1] = id
  cursor.at, cursor.rank = at + 2, score and score + handicap_of(cursor.p)
  return id
end
