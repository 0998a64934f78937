#!lua flags=allow-oom
-- Let a dedup key go, whoever owns it: the next job with it is new work. May be repeated.
-- KEYS[1] prefix of the queue's keys
-- ARGV[1] tenant  ARGV[2] dedup hash
-- returns {job that owned it, ms that were left or -1}, {} where it was free
local key = dedup_key(ARGV[1], ARGV[2])
local owner = redis.pcall('GET', key)
if type(owner) ~= 'string' then return {} end
local left_ms = redis.call('PTTL', key)
redis.call('DEL', key)
return { owner, left_ms }
