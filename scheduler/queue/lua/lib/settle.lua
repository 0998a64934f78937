-- How long the attempts of a lane took: what tick reckons with.
local function count_attempt(rec)
  local claimed_ms = whole(rec.c, 0, now_ms)
  if rec.l and claimed_ms then add('ms:' .. rec.l, now_ms - claimed_ms) end
end

-- An attempt has ended: what it used, nil where nobody knows, takes the place of what was estimated when it began.
local function settle_usage(id, rec, used)
  if not used then return end
  local tenant, endpoint = tenant_gate(rec.t), rec.v and endpoint_gate(rec.v)
  if not (tenant or endpoint) then return end
  local estimate = estimate_tokens(request_bytes(id))
  if tenant then tenant.correct(used, estimate) end
  if endpoint then endpoint.correct(used, estimate) end
end
