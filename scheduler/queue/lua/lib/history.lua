-- Add to a job's history what its other fields will not tell: [ms, what, worker, attempt, detail].
local HISTORY_BYTES = 8192

local function remember(id, history, what, worker, attempt, detail)
  local entry = '[' .. text(now_ms) .. ',' .. cjson.encode(what) .. ',' .. cjson.encode(worker or '') .. ','
    .. (attempt or 0) .. ',' .. cjson.encode(string.sub(detail or '', 1, 500)) .. ']'
  if not history or history == '' then
    history = entry
  elseif #history + #entry < HISTORY_BYTES then
    history = history .. ',' .. entry
  else
    return
  end
  redis.call('HSET', record_key(id), 'y', history)
end
