#!lua flags=no-writes
-- How many jobs of its lane would be claimed before a waiting job; before a held one, how many of its tenant in its lane;
-- before a suspect, how many suspects.
-- KEYS[1] prefix of the queue's keys
-- ARGV[1] job
-- returns the number, -1 for a job that neither waits nor is held
-- @include "lib/argument"
-- @include "lib/record"
-- @include "lib/rank"

local rec = read(ARGV[1], { 's', 'p', 'l', 't', 'q', 'o' })
if not sound(rec) or not rec.q or (rec.s ~= 'waiting' and rec.s ~= 'held') then return -1 end
local lane, p = place_of(rec), tonumber(rec.p)
local rank = tonumber(rec.q) + handicap_of(p)

-- How many jobs of another level are claimed before it.
local function before_at(level)
  local key = level_key(lane, level)
  if is_strict(math.max(level, p)) then return level > p and redis.call('ZCARD', key) or 0 end
  local score = string.format('%.0f', rank - handicap_of(level))
  return redis.call('ZCOUNT', key, '-inf', level > p and score or '(' .. score)
end

local before = redis.call('ZRANK', level_key(lane, p), ARGV[1]) or 0
for level = 0, 9 do
  if level ~= p then before = before + before_at(level) end
end
return before
