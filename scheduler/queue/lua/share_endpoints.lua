#!lua flags=allow-oom
-- Record that a worker process uses some endpoints, and count the processes that do. May be repeated.
-- KEYS[1] prefix of the queue's keys
-- ARGV[1] worker process  ARGV[2] how long this holds, ms; 0: it no longer uses them  ARGV[3…] endpoints
-- returns, for each endpoint: how many worker processes use it, the index of this one among them, by name, from 0
-- @include "lib/clock"
-- @include "lib/argument"

local worker, holds_ms = named(1), argument(2, 0, MOST_MS)
local reply = {}
for i = 3, #ARGV do
  local key = users_key(ARGV[i])
  if holds_ms > 0 then
    redis.call('HSET', key, worker, text(now_ms + holds_ms))
    redis.call('PEXPIRE', key, text(10 * holds_ms))
  else
    redis.call('HDEL', key, worker)
  end
  local count, index = 0, 0
  local users = redis.call('HGETALL', key)
  for j = 1, #users, 2 do
    if (tonumber(users[j + 1]) or 0) < now_ms then
      redis.call('HDEL', key, users[j])
    else
      count = count + 1
      if users[j] < worker then index = index + 1 end
    end
  end
  reply[#reply + 1], reply[#reply + 2] = count, index
end
return reply
