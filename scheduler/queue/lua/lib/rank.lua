-- The order of claiming: 9, then 8, then the lowest rank. Below 8 a level is worth `aging_ms` of waiting; with 0 every level is
-- strict. scheduler/queue/rank.py has the same rule.
local aging_us = (whole(redis.call('HGET', conf_key, 'aging_ms'), 0, MOST_MS) or DEFAULT_AGING_MS) * 1000

-- Whether a level is a class of its own: it goes before all less urgent ones, however long those have waited.
local function is_strict(p) return p >= URGENT or aging_us == 0 end

-- What a level adds to a job's rank. Of equal sums the higher level goes first.
local function handicap_of(p) return (9 - p) * aging_us end
