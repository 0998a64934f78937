-- The first members of a sorted set whose time has come.
local function due(key, limit) return redis.call('ZRANGEBYSCORE', key, '-inf', text(now_ms), 'LIMIT', 0, limit) end
