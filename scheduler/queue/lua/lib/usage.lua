-- An attempt has ended. tend estimates the waiting work of a lane from how long its attempts took; for rate limits, the used
-- tokens replace the estimate that was charged when the attempt began.
-- used_tokens: nil if nobody knows
local function record_usage(id, rec, used_tokens)
  local claimed_ms = whole(rec.c, 0, now_ms)
  if rec.l and claimed_ms then add('ms:' .. rec.l, now_ms - claimed_ms) end
  if not used_tokens then return end
  local tenant, endpoint = tenant_gate(rec.t), rec.v and endpoint_gate(rec.v)
  if not (tenant or endpoint) then return end
  local estimate = estimate_tokens(request_bytes(id))
  if tenant then tenant.correct(used_tokens, estimate) end
  if endpoint then endpoint.correct(used_tokens, estimate) end
end
