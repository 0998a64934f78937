-- Nothing of a dead letter is kept, and nothing else names it: it gave its dedup key up when it failed.
local function forget_dead(id)
  redis.call('ZREM', dead_key, id)
  redis.call('DEL', record_key(id), payload_key(id), result_key(id), tickets_key(id), stream_key(id))
end
