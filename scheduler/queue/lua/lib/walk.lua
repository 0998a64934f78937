-- Walks over keys with any number of members, some of them a call. A bookmark is text from which the next call continues.

-- At most n members after a bookmark, by SSCAN, HSCAN or ZSCAN; the reply of a small key, which is all of it, is cut too.
-- Hashes and sorted sets give a value or score after each member. Returns the members, and the next bookmark, nil at the end.
-- As with SCAN, members that are there all the time are seen; those that come and go may be missed; some may be seen twice.
local function walk(command, key, bookmark, n)
  local cursor, seen = string.match(bookmark or '', '^(%d+) (%d+)$')
  cursor, seen = cursor or '0', tonumber(seen or 0)
  -- Half of n, since a page may be longer: a cut page that loses members before the next call hides others.
  local reply = redis.pcall(command, key, cursor, 'COUNT', math.ceil(n / 2))
  if reply.err then return {}, nil end -- an invalid bookmark, or a key of another type
  local next_cursor, members = reply[1], reply[2]
  if type(next_cursor) == 'number' then next_cursor = text(next_cursor) end
  local width = command == 'SSCAN' and 1 or 2
  local page, from, to = {}, seen * width, (seen + n) * width
  for i = from + 1, math.min(to, #members) do page[#page + 1] = members[i] end
  if to < #members then return page, cursor .. ' ' .. text(seen + n) end
  if next_cursor ~= '0' then return page, next_cursor .. ' 0' end
  return page, nil
end

-- The same bookmark once `gone` of the members before it have been removed.
local function bookmark_after(bookmark, gone)
  local cursor, seen = string.match(bookmark, '^(%d+) (%d+)$')
  return cursor .. ' ' .. text(math.max(0, tonumber(seen) - gone))
end
