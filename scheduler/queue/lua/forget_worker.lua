#!lua flags=allow-oom
-- Remove a worker process that has stopped from the list, and release its maintenance lock. May be repeated.
-- KEYS[1] prefix of the queue's keys
-- ARGV[1] worker process
-- returns nothing
local worker = ARGV[1]
redis.call('ZREM', workers_key, worker)
redis.call('DEL', worker_key(worker), claimed_key(worker))
if redis.call('GET', leader_key) == worker then redis.call('DEL', leader_key) end
