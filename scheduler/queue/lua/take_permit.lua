#!lua flags=allow-oom
-- Take a permit of another endpoint for a running attempt. May be repeated.
-- KEYS[1] prefix of the queue's keys
-- ARGV[1] job  ARGV[2] token  ARGV[3] endpoint
-- returns 0: taken, or the endpoint has no limit | the ms until a permit comes | -1 refused: the job is no longer this token's
-- @include "lib/clock"
-- @include "lib/argument"
-- @include "lib/record"
-- @include "lib/limit"

local id, endpoint = ARGV[1], ARGV[3]
local rec = read(id, { 's', 'k', 'v' })
if not rec or rec.s ~= 'running' or rec.k ~= ARGV[2] then return -1 end
if rec.v == endpoint then return 0 end
local gate = endpoint_gate(endpoint)
if gate then
  if not gate.passable() then return gate.passable_in_ms() end
  gate.charge(estimate_tokens(request_bytes(id)))
  redis.call('HSET', record_key(id), 'v', endpoint)
  save_gates()
elseif rec.v then
  redis.call('HDEL', record_key(id), 'v')
end
return 0
