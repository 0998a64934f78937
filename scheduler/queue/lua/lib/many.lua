-- Commands with more members than unpack can take.
local AT_ONCE = 1000

local function each_chunk(command, key, members)
  for at = 1, #members, AT_ONCE do
    redis.call(command, key, unpack(members, at, math.min(#members, at + AT_ONCE - 1)))
  end
end

local function unlink(keys)
  for at = 1, #keys, AT_ONCE do redis.call('UNLINK', unpack(keys, at, math.min(#keys, at + AT_ONCE - 1))) end
end
