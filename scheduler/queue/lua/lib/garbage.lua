-- Jobs whose records cannot be used are set aside, so that they do not stop others.
local BROKEN = 'the record is missing or not as the queue writes it'

-- The caller has taken the job from its place. state: that of all jobs there.
local function set_aside(id, rec, state)
  redis.call('HSET', garbage_key, id, BROKEN)
  add('t:garbage', 1)
  if not rec or rec.s ~= state then return end
  -- A caller may wait for this job, so it ends instead of vanishing.
  rec.n, rec.g = tonumber(rec.n) and rec.n, nil
  end_detached_job(id, rec, 'failed', 'record_damaged', error_json('record_damaged', BROKEN))
end
