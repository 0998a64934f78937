-- Arguments and stored settings as whole numbers within bounds: a number beyond a bound counts as the bound.
local MOST_MS = 315360000000 -- ten years
local MOST_JOBS = 1024 -- that one call claims or reads
local MOST_NUMBER = 9007199254740992 -- a double has every whole number up to here

-- The whole number that a text stands for; nil if it is no number.
local function whole(value, least, most)
  local number = tonumber(value)
  if not number or number ~= number then return nil end
  if number < least then return least end
  if number > most then return most end
  return number - number % 1
end

-- The same of an argument. It ends the script if it is no number: call it before the first write.
local function argument(at, least, most)
  local number = whole(ARGV[at], least, most)
  if number then return number end
  error('ARGV[' .. at .. '] is no number')
end

-- The same of an argument that may be '', which stays ''.
local function optional(at, least, most)
  if ARGV[at] == '' then return '' end
  return argument(at, least, most)
end

-- An argument that names something: a reply can carry it, and no name has a space.
local function named(at)
  local value = ARGV[at]
  if value and #value <= 1024 and string.find(value, '^[!-~]+$') then return value end
  error('ARGV[' .. at .. '] is no name')
end
