#!lua flags=allow-oom
-- Release a dedup key, whichever job owns it: the next job with the key is new. May be repeated.
-- KEYS[1] prefix of the queue's keys
-- ARGV[1] tenant  ARGV[2] dedup hash
-- returns {job that owned it, ms that were left or -1}, {} if it was free
local key = dedup_key(ARGV[1], ARGV[2])
local owner = redis.pcall('GET', key)
if type(owner) ~= 'string' then return {} end
local left_ms = redis.call('PTTL', key)
redis.call('DEL', key)
return { owner, left_ms }
