-- The id that a joined caller proposed names the job that it joined, as long as that is stored.
local ALIASES_A_JOB = 1000 -- a bound on what the end of a job has to do; more aliases live briefly, for calls that are repeated
local BRIEF_MS = 60000

-- known: how many callers have joined the job, or got its answer again, before this one.
local function set_alias(alias, id, known, lasts_ms)
  if known >= ALIASES_A_JOB then lasts_ms = BRIEF_MS end
  redis.call('SET', alias_key(alias), id, 'PX', text(lasts_ms))
end

-- When a job has ended its aliases go with its record.
local function keep_aliases(id, rec, lasts)
  if (tonumber(rec.j) or math.huge) > ALIASES_A_JOB then return end
  local tickets = redis.pcall('SMEMBERS', tickets_key(id))
  for i = 1, #tickets do
    if tickets[i] ~= id then redis.call('PEXPIRE', alias_key(tickets[i]), lasts) end
  end
end
