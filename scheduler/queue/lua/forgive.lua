#!lua flags=allow-oom
-- Let a tenant or an endpoint have again all that its rate limit gives, and tell worker processes. May be repeated.
-- KEYS[1] prefix of the queue's keys
-- ARGV[1] subject: t:<tenant> or e:<endpoint>
-- returns 1 if some of it had been used, else 0
-- @include "lib/argument"
-- @include "lib/event"

local subject = named(1)
local had_used = redis.call('DEL', bucket_key(subject))
-- Held jobs may have to wait no more: tick looks at all of them.
if string.sub(subject, 1, 2) == 't:' then redis.call('HSET', meta_key, 'limits changed', '0 0') end
tell(control_key, cjson.encode({ forgive = subject }))
return had_used
