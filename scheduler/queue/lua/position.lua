#!lua flags=no-writes
-- How many jobs of its lane would be claimed before a waiting job; before a held one, how many of its tenant in its lane;
-- before a suspect, how many suspects.
-- KEYS[1] prefix of the queue's keys
-- ARGV[1] job
-- returns the number, -1 for a job that neither waits nor is held, -2 for an unknown one
-- @include "lib/argument"
-- @include "lib/record"

local rec = read(ARGV[1], { 's', 'p', 'l', 't', 'q', 'o' })
if not sound(rec) or not rec.q then return -2 end
if rec.s ~= 'waiting' and rec.s ~= 'held' then return -1 end
local lane = place_of(rec)
local p, rank = tonumber(rec.p), tonumber(rec.q)
local aging_us = (whole(redis.call('HGET', conf_key, 'aging_ms'), 0, MOST_MS) or 30000) * 1000
local strict = p >= URGENT or aging_us == 0
local before = redis.call('ZRANK', level_key(lane, p), ARGV[1]) or 0
for level = 0, 9 do
  local key = level_key(lane, level)
  if level > p and (level >= URGENT or strict) then
    before = before + redis.call('ZCARD', key)
  elseif level ~= p and not strict then
    -- Where both have aged alike the higher level is first.
    local latest = string.format('%.0f', rank + (level - p) * aging_us)
    before = before + redis.call('ZCOUNT', key, '-inf', level > p and latest or '(' .. latest)
  end
end
return before
