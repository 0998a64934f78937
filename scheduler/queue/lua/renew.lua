#!lua flags=allow-oom
-- Renew all leases of a worker process, and record that it is alive. May be repeated.
-- KEYS[1] prefix of the queue's keys
-- ARGV[1] worker process  ARGV[2] lease, ms  ARGV[3] its description of itself, JSON  ARGV[4…] job, token, …
-- returns, for each job: -2 lost: the job is no longer this token's | -1 renewed, no deadline | ms to its deadline
-- @include "lib/clock"
-- @include "lib/argument"
-- @include "lib/record"
-- @include "lib/event"

local worker, lease_ms = named(1), argument(2, 1, MOST_MS)
local about, lease_end = ARGV[3] or '', text(now_ms + lease_ms)
local replies = {}
for i = 4, #ARGV, 2 do
  local id = ARGV[i]
  local rec = read(id, { 's', 'k', 'x' })
  if rec and rec.s == 'running' and rec.k == ARGV[i + 1] then
    redis.call('ZADD', leases_key, lease_end, id)
    redis.call('PEXPIRE', stream_key(id), RUNNING_STREAM_MS)
    local deadline_ms = tonumber(rec.x)
    replies[#replies + 1] = deadline_ms and math.max(0, deadline_ms - now_ms) or -1
  else
    replies[#replies + 1] = -2
  end
end
redis.call('SET', worker_key(worker), about, 'PX', text(3 * lease_ms))
redis.call('ZADD', workers_key, text(now_ms + 3 * lease_ms), worker)
return replies
