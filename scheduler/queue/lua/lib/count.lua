-- The counts of jobs that bounds refer to, and totals: gathered in a script, and written once by save_counts().
local gathered = {}

local function add(field, n) gathered[field] = (gathered[field] or 0) + n end

local function count_waiting(lane, n)
  add('n', n)
  add('n:' .. lane, n)
end

local function save_counts()
  local freed = (gathered['n'] or 0) < 0
  for field, n in pairs(gathered) do
    -- A damaged or full count must not stop the rest of the script.
    if n ~= 0 then redis.pcall('HINCRBY', meta_key, field, text(n)) end
  end
  gathered = {}
  if freed and redis.call('LLEN', space_key) == 0 and redis.call('HEXISTS', meta_key, 'blocked') == 1 then
    redis.call('HDEL', meta_key, 'blocked')
    redis.call('RPUSH', space_key, '1')
  end
end
