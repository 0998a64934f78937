-- The requests of jobs that were cancelled, have expired or were shed are kept for requeue: the latest of them, up to spare_bytes.
-- A list of "<bytes> <job>", the latest last; meta has the sum of the bytes.
local ENTRY_BYTES = 200 -- of each, beside the request: its key and its entry in the list

local spared = {}

local function spare_request(id) spared[#spared + 1] = id end

-- Adds the keys of requests for which there is no more room to `unwanted`.
local function save_spare_requests(unwanted)
  if #spared == 0 then return end
  local most, entries, added, at = keeping().spare_bytes, {}, 0, #spared
  while at > 0 do
    local bytes = request_bytes(spared[at]) + ENTRY_BYTES
    if added + bytes > most then break end
    table.insert(entries, 1, text(bytes) .. ' ' .. spared[at])
    added, at = added + bytes, at - 1
  end
  for i = 1, at do unwanted[#unwanted + 1] = payload_key(spared[i]) end
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
  spared = {}
end
