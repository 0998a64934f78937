-- Walks the levels of many places in the order of claiming, see lib/rank.
local CHUNK = 32

-- Adds a cursor for each level in use of a place, the less urgent first. place: a table with its name, and what the caller needs.
-- A cursor has eight fields and no more: a table with nine takes twice the memory, and there are many cursors.
-- Its rank is nil before it is read and when its page is used up, and false at the end of its level.
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

-- How many jobs of a level the first page has. Later pages have as many as were picked so far.
local first_chunk = 1

local function read_page(cursor)
  local from, chunk = #cursor.picked, first_chunk
  if from > chunk then chunk = from < CHUNK and from or CHUNK end
  cursor.ids = redis.call('ZRANGE', level_key(cursor.place.name, cursor.p), from, from + chunk - 1, 'WITHSCORES')
  cursor.at, cursor.drained = 1, #cursor.ids < 2 * chunk
end

-- The rank of the next job of a level with its handicap; false if there is none.
local function rank_of(cursor)
  if cursor.rank == nil then
    if not cursor.drained then read_page(cursor) end
    local score = cursor.ids[cursor.at + 1]
    cursor.rank = score and score + handicap_of(cursor.p) or false
  end
  return cursor.rank
end

-- Whether a level has more jobs than were picked; nil if that takes a command to know.
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

-- The cursors of one class in the order of their next jobs, as a binary heap, so that a claim over many lanes visits few of them
-- for each job. Of equal ranks the higher level goes first. The heap orders cursors by a floor, a lower bound of their ranks; when
-- a cursor comes to the top, its floor is brought up to its rank.
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

-- An order over the jobs of all cursors. wanted: how many jobs are wanted in all; the first pages follow from it.
local function make_order(cursors, wanted)
  first_chunk = math.min(CHUNK, math.max(1, math.ceil(2 * wanted / math.max(1, #cursors))))
  return { cursors = cursors, next_p = 9, heap = {} }
end

-- Open the next class, with its cursors that fits(cursor) accepts.
local function open_class(order, fits)
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

-- Whether all classes are open and no cursor has a lower rank.
local function none_before(order, rank)
  local first = order.heap[1]
  return order.next_p < 0 and not (first and first.floor < rank)
end

-- The cursor whose next job is to be claimed first, of those that fits(cursor) accepts. A cursor that does not fit will not fit
-- later either, so its level is not read.
local function best(order, fits)
  local heap = order.heap
  while true do
    local cursor = heap[1]
    if not cursor then
      if order.next_p < 0 then return nil end
      open_class(order, fits)
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

-- Pick the next job of a level. leave_picked() takes the picked jobs out of their levels at the end.
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
