#!lua flags=allow-oom
-- Return a ticket of a job, and end the job if it was the last one; or end it whatever tickets are left. May be repeated.
-- KEYS[1] prefix of the queue's keys
-- ARGV[1] job  ARGV[2] ticket, '' to end the job whatever tickets are left
-- returns 'cancelled' | 'ticket_returned' | 'ended' (it has ended in another way) | 'not_found'
-- @include "lib/clock"
-- @include "lib/argument"
-- @include "lib/record"
-- @include "lib/level"
-- @include "lib/count"
-- @include "lib/event"
-- @include "lib/many"
-- @include "lib/forget"
-- @include "lib/keeping"
-- @include "lib/spare"
-- @include "lib/alias"
-- @include "lib/conclude"

local id, ticket = ARGV[1], ARGV[2]
local rec = read(id, { 's', 'r', unpack(ENDING) })
if not sound(rec) then return 'not_found' end
if ENDED[rec.s] then return rec.s == 'cancelled' and rec.r == 'cancelled' and 'cancelled' or 'ended' end
if ticket ~= '' then
  redis.call('SREM', tickets_key(id), ticket)
  if redis.call('SCARD', tickets_key(id)) > 0 then return 'ticket_returned' end
  if redis.call('HEXISTS', record_key(id), 'j') == 0 and ticket ~= id then return 'ticket_returned' end
end
end_job(id, rec, 'cancelled', 'cancelled')
save_ended()
save_counts()
return 'cancelled'
