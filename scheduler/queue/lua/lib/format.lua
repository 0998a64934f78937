-- The format of what is stored. It grows when what is stored no longer means the same to those who read it.
local FORMAT = 1

-- Ends the script before its first write where a newer version has written the queue.
local function check_format(stored)
  if (tonumber(stored) or 0) > FORMAT then error('NEWERFORMAT ' .. stored) end
end
