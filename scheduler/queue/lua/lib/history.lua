-- A job's history has entries for what its other fields do not show: [ms, what, worker, attempt, detail]. Repetitions are one entry:
-- the last of them, with two more values: how many in a row, and the ms of the first. The first and the newest entries are kept.
local HISTORY_BYTES = 8192
local FIRST_ENTRIES = 4

-- At most 500 bytes, without half a character at the end.
local function shorten(detail)
  if #detail <= 500 then return detail end
  return (string.gsub(string.sub(detail, 1, 500), '[\194-\244]?[\128-\191]*$', ''))
end

local function entry_json(one)
  local json = '[' .. text(one[1]) .. ',' .. cjson.encode(one[2]) .. ',' .. cjson.encode(one[3]) .. ',' .. text(one[4]) .. ','
    .. cjson.encode(one[5])
  return json .. (one[6] and ',' .. text(one[6]) .. ',' .. text(one[7]) or '') .. ']'
end

-- The worker process makes no difference. Entries without a detail stay apart: lost leases name the processes that were lost.
local function is_repeated(one, last)
  return type(last) == 'table' and one[5] ~= '' and last[2] == one[2] and last[5] == one[5]
end

local function remember(id, history, what, worker, attempt, detail)
  local is_readable, entries = pcall(cjson.decode, '[' .. (history or '') .. ']')
  if not is_readable then entries = {} end
  local one = { now_ms, what, worker or '', tonumber(attempt) or 0, shorten(detail or '') }
  local last = entries[#entries]
  if is_repeated(one, last) then
    one[6], one[7] = (tonumber(last[6]) or 1) + 1, last[7] or last[1]
    table.remove(entries)
  end
  entries[#entries + 1] = one
  local list, bytes = {}, 0
  for _, entry in ipairs(entries) do
    local is_whole, json = pcall(entry_json, entry)
    if is_whole then list[#list + 1], bytes = json, bytes + #json + 1 end
  end
  while bytes > HISTORY_BYTES and #list > FIRST_ENTRIES + 1 do
    bytes = bytes - #table.remove(list, FIRST_ENTRIES + 1) - 1
  end
  redis.call('HSET', record_key(id), 'y', table.concat(list, ','))
end
