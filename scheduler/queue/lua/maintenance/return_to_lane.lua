-- Lanes that get work in this call; they are woken at its end.
local to_wake = {}

local function return_to_lane(id, rec)
  make_ready(id, rec)
  if rec.s == 'waiting' then to_wake[rec.l] = true end
end

-- Returns how many lanes were woken.
local function wake_lanes()
  local woken = 0
  for lane in pairs(to_wake) do
    if wake(lane) then woken = woken + 1 end
  end
  return woken
end
