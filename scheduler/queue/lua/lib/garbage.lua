-- What stands in the way without a record that can be used is put aside, so that it stops nobody else.
local BROKEN = 'the record is missing or not as the queue writes it'

-- The caller has taken the member from its place; place is the state that it stood for there.
local function set_aside(id, rec, place)
  redis.call('HSET', garbage_key, id, BROKEN)
  add('t:garbage', 1)
  if not rec or rec.s ~= place then return end
  -- Somebody may wait for this job: it ends rather than vanishes.
  rec.n, rec.g = tonumber(rec.n) and rec.n, nil
  end_detached_job(id, rec, 'failed', 'record_damaged', error_json('record_damaged', BROKEN))
end
