#!lua flags=allow-oom
-- Reset what a tenant or an endpoint has used of its rate limit, and notify worker processes. May be repeated.
-- KEYS[1] prefix of the queue's keys
-- ARGV[1] subject: t:<tenant> or e:<endpoint>
-- returns 1 if it had used some of it, else 0
-- @include "lib/argument"
-- @include "lib/event"

local subject = named(1)
local had_used = redis.call('DEL', bucket_key(subject))
-- Held jobs may have to wait no longer: tick checks all of them.
if string.sub(subject, 1, 2) == 't:' then redis.call('HSET', meta_key, 'limits changed', '0 0') end
tell(control_key, cjson.encode({ forgive = subject }))
return had_used
