-- The endpoints that a worker process offers for the jobs of a lane: 'endpoint room reserved outstanding weight', repeated.
local function parse_offers(offered)
  local list, offers, words = {}, {}, {}
  for word in string.gmatch(offered, '%S+') do words[#words + 1] = word end
  for at = 1, #words - 4, 5 do
    list[#list + 1] = {
      endpoint = words[at], room = tonumber(words[at + 1]) or 0, reserved = tonumber(words[at + 2]) or 0,
      outstanding = tonumber(words[at + 3]) or 0, weight = math.max(1e-6, tonumber(words[at + 4]) or 1),
      gate = endpoint_gate(words[at]),
    }
  end

  local function load(offer) return (offer.outstanding + 1) / offer.weight end

  -- The least busy endpoint by weight that has room and a permit. Without one: nil; and, if only permits are missing, the ms
  -- to the next and the endpoints that lack one.
  function offers.choose(p)
    local chosen, wait_ms, without = nil, nil, {}
    for _, offer in ipairs(list) do
      if offer.room > (p >= URGENT and 0 or offer.reserved) then
        if offer.gate and not offer.gate.passable() then
          wait_ms = math.min(wait_ms or math.huge, offer.gate.passable_in_ms())
          without[#without + 1] = offer.endpoint
        elseif not chosen or load(offer) < load(chosen) then
          chosen = offer
        end
      end
    end
    return chosen, wait_ms, table.concat(without, ' ')
  end

  return offers
end
