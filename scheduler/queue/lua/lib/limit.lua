-- Rate limits of tenants ('t:acme') and endpoints ('e:chat.0'): each has a bucket of requests and one of tokens.
-- A bucket is one number, the microsecond at which it is full again: the generic cell rate algorithm, as virtual scheduling.
-- Source: ITU-T Recommendation I.371, annex A.
local MINUTE_US = 60000000
local BYTES_A_TOKEN = 4
-- No request costs more than an hour of a limit, and no bucket of tokens is in debt for more than a day, whatever usage an engine
-- reports. A bucket of requests has no debt: it is full again within a minute, however the clock is set.
local MOST_MINUTES_A_REQUEST = 60
local MOST_DEBT_US = 86400000000
local MOST_A_MINUTE = 1000000000

-- The tokens that a request is charged until its end reports them.
local function estimate_tokens(payload_bytes) return math.floor(payload_bytes / BYTES_A_TOKEN) end

-- A gate of two buckets; false if nothing is limited. Its functions are made inside, so that scripts without limits do not pay for
-- them.
local function new_gate(subject, limit)
  local requests_a_minute, tokens_a_minute = string.match(limit or '', '^(%d+) (%d+)$')
  if not requests_a_minute or requests_a_minute + tokens_a_minute == 0 then return false end
  local saved = redis.pcall('GET', bucket_key(subject))
  local requests_at, tokens_at = string.match(type(saved) == 'string' and saved or '', '^(%d+) (%d+)$')

  -- A tenth of the limit may go at once; the rest is spread so that no 60 s exceed the limit.
  local function bucket(limit_text, saved_at, most_debt_us)
    local per_minute = math.min(MOST_A_MINUTE, tonumber(limit_text))
    local burst = math.max(1, math.floor(per_minute / 10))
    local interval = MINUTE_US / (per_minute - burst + 1)
    local full_at = math.min(now_us + most_debt_us, tonumber(saved_at or 0))
    return { limited = per_minute > 0, interval = interval, burst = burst, full_at = full_at, per_minute = per_minute }
  end
  local requests, tokens = bucket(requests_a_minute, requests_at, MINUTE_US), bucket(tokens_a_minute, tokens_at, MOST_DEBT_US)
  requests.interval = math.ceil(requests.interval)

  local function take(one, n)
    if not one.limited or n == 0 then return end
    -- A refund beyond the size of the bucket is lost.
    local from = n > 0 and math.max(one.full_at, now_us) or one.full_at
    one.full_at = math.max(0, math.min(now_us + MOST_DEBT_US, from + math.ceil(n * one.interval)))
  end

  local function opens_at(one) return one.limited and one.full_at - (one.burst - 1) * one.interval or 0 end

  local gate = { changed = false }

  -- The microsecond from which one more request may pass: it fits, and the tokens are not in debt.
  function gate.passable_at() return math.max(now_us, opens_at(requests), opens_at(tokens)) end

  function gate.passable() return gate.passable_at() == now_us end

  function gate.passable_at_ms() return text(math.ceil(gate.passable_at() / 1000)) end

  function gate.passable_in_ms() return math.ceil((gate.passable_at() - now_us) / 1000) end

  local function bounded(n_tokens) return math.min(n_tokens, MOST_MINUTES_A_REQUEST * tokens.per_minute) end

  function gate.charge(n_tokens)
    take(requests, 1)
    take(tokens, bounded(n_tokens))
    gate.changed = true
  end

  -- Replace the estimate by the tokens that were used.
  function gate.correct(used, estimate)
    take(tokens, bounded(used) - bounded(estimate))
    gate.changed = true
  end

  function gate.save()
    local left_ms = math.ceil((math.max(requests.full_at, tokens.full_at) - now_us) / 1000)
    local full_at = text(requests.full_at) .. ' ' .. text(tokens.full_at)
    redis.call('SET', bucket_key(subject), full_at, 'PX', text(math.max(1, left_ms)))
  end

  -- A bound that is not saved would start anew with every look.
  if requests.full_at < tonumber(requests_at or 0) or tokens.full_at < tonumber(tokens_at or 0) then gate.save() end
  return gate
end

-- The gates that this script has read and charged; save_gates() writes them.
local gates, limited_kinds = {}, nil

-- One read shows whether anything of a kind, 't' or 'e', has a limit.
local function find_gate(kind, name)
  limited_kinds = limited_kinds or redis.call('HGET', conf_key, 'limits') or ''
  if limited_kinds == '' or not string.find(limited_kinds, kind, 1, true) then return false end
  local subject = kind .. ':' .. name
  if gates[subject] == nil then
    local limits = redis.call('HMGET', limits_key, subject, kind .. ':*')
    gates[subject] = new_gate(subject, limits[1] or limits[2])
  end
  return gates[subject]
end

-- The gate of a tenant or of an endpoint; false if it has no limit.
local function tenant_gate(tenant) return find_gate('t', tenant or 'default') end
local function endpoint_gate(endpoint) return find_gate('e', endpoint) end

local function save_gates()
  for _, gate in pairs(gates) do
    if gate and gate.changed then gate.save() end
  end
end
