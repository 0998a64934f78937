-- How long the attempts of a lane took: what tick reckons with.
local function count_attempt(rec)
  if rec.l and rec.c then add('ms:' .. rec.l, math.max(0, now_ms - tonumber(rec.c))) end
end

-- An attempt has ended: what it used takes the place of what was estimated when it began.
local function settle_usage(id, rec, used)
  if used == '' then return end
  local tenant, endpoint = tenant_gate(rec.t), rec.v and endpoint_gate(rec.v)
  if not (tenant or endpoint) then return end
  local estimate = estimate_tokens(redis.call('STRLEN', payload_key(id)))
  if tenant then tenant.correct(tonumber(used), estimate) end
  if endpoint then endpoint.correct(tonumber(used), estimate) end
end
