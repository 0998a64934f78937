-- Add to a job's history what its other fields will not tell: [ms, what, worker, attempt, detail].
local HISTORY_BYTES = 8192

-- At most 500 bytes, and no half of a character at the end.
local function shorten(detail)
  if #detail <= 500 then return detail end
  return (string.gsub(string.sub(detail, 1, 500), '[\194-\244]?[\128-\191]*$', ''))
end

local function remember(id, history, what, worker, attempt, detail)
  local entry = '[' .. text(now_ms) .. ',' .. cjson.encode(what) .. ',' .. cjson.encode(worker or '') .. ','
    .. (attempt or 0) .. ',' .. cjson.encode(shorten(detail or '')) .. ']'
  if not history or history == '' then
    history = entry
  elseif #history + #entry < HISTORY_BYTES then
    history = history .. ',' .. entry
  else
    return
  end
  redis.call('HSET', record_key(id), 'y', history)
end
