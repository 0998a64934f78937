-- Walks over what may have any number of members, some of them a call: a place in the walk is text that the next call gets.

-- The members after a place of a walk by SSCAN, HSCAN or ZSCAN, at most n; what a small one gives at once is cut as well.
-- Hashes and sorted sets give a value or score after each member. Returns them, and the next place, nil at the end.
-- As with SCAN, what is there all the time is seen; what comes and goes may be; some may be seen twice.
local function walk(command, key, place, n)
  local cursor, seen = string.match(place or '', '^(%d+) (%d+)$')
  cursor, seen = cursor or '0', tonumber(seen or 0)
  -- Half, for a page may be longer: a cut page that loses members meanwhile hides others.
  local reply = redis.pcall(command, key, cursor, 'COUNT', math.ceil(n / 2))
  if reply.err then return {}, nil end -- a place that is none, or a key that is something else
  local next_cursor, members = reply[1], reply[2]
  if type(next_cursor) == 'number' then next_cursor = text(next_cursor) end
  local width = command == 'SSCAN' and 1 or 2
  local page, from, to = {}, seen * width, (seen + n) * width
  for i = from + 1, math.min(to, #members) do page[#page + 1] = members[i] end
  if to < #members then return page, cursor .. ' ' .. text(seen + n) end
  if next_cursor ~= '0' then return page, next_cursor .. ' 0' end
  return page, nil
end

-- The same place once `gone` of the members before it have been taken out.
local function place_after(place, gone)
  local cursor, seen = string.match(place, '^(%d+) (%d+)$')
  return cursor .. ' ' .. text(math.max(0, tonumber(seen) - gone))
end
