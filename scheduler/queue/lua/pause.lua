#!lua flags=allow-oom
-- Stop claims from a lane; jobs can still be enqueued. May be repeated.
-- KEYS[1] prefix of the queue's keys
-- ARGV[1] lane
-- returns 1 if the lane was not paused before
return redis.call('SADD', paused_key, ARGV[1])
