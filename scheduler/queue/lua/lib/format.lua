-- Ends the script before its first write if a newer version has written the queue: it stores what this one would misunderstand.
local function check_format(stored)
  if (tonumber(stored) or 0) > FORMAT then error('NEWERFORMAT ' .. stored) end
end
