#!lua flags=allow-oom
-- Delete dead letters. May be repeated.
-- KEYS[1] prefix of the queue's keys
-- ARGV[1…] jobs
-- returns, for each job: 1 if it was a dead letter, else 0
-- @include "lib/clock"
-- @include "lib/record"
-- @include "lib/count"
-- @include "lib/forget"

local reply = {}
for i, id in ipairs(ARGV) do
  local rec = read(id, { 's', 't', 'd' })
  reply[i] = rec and rec.s == 'failed' and 1 or 0
  if reply[i] == 1 then
    forget(id, rec)
    add('t:dead_purged', 1)
  end
end
save_counts()
return reply
