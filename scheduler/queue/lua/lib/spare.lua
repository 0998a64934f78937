-- The requests of jobs that were cancelled, have expired or were shed, for requeue: the latest of them, up to so many bytes.
-- A list of "<bytes> <job>", the latest last; its bytes are counted in meta.
local ENTRY_BYTES = 200 -- beside the request: its key and its place in the list

local laid_by = {}

local function lay_by(id) laid_by[#laid_by + 1] = id end

-- Those that have no room any more are added to unwanted, a list of keys.
local function save_spare(unwanted)
  if #laid_by == 0 then return end
  local most, entries, added, at = keeping().spare_bytes, {}, 0, #laid_by
  while at > 0 do
    local bytes = request_bytes(laid_by[at]) + ENTRY_BYTES
    if added + bytes > most then break end
    table.insert(entries, 1, text(bytes) .. ' ' .. laid_by[at])
    added, at = added + bytes, at - 1
  end
  for i = 1, at do unwanted[#unwanted + 1] = payload_key(laid_by[i]) end
  each_chunk('RPUSH', spare_key, entries)
  local total = (tonumber(redis.call('HGET', meta_key, 'spare')) or 0) + added
  while total > most do
    local oldest = redis.pcall('LPOP', spare_key) or ''
    if type(oldest) ~= 'string' then break end
    local bytes, id = string.match(oldest, '^(%d+) (.+)$')
    total = bytes and total - bytes or 0
    -- It may have been requeued since.
    local rec = id and read(id, { 's' })
    if rec and ENDED[rec.s] and rec.s ~= 'failed' then unwanted[#unwanted + 1] = payload_key(id) end
  end
  redis.call('HSET', meta_key, 'spare', text(total))
  laid_by = {}
end
