#!lua flags=allow-oom
-- Publish the queue's settings and limits, and the routes that a worker process serves. Routes that only other processes serve stay
-- as they are; the limits of tenants replace all that were there. May be repeated.
-- KEYS[1] prefix of the queue's keys
-- ARGV[1] how many settings  ARGV[2] how many routes  ARGV[3] how many limits  ARGV[4…] those, in that order: name, value, …
-- returns 1
-- error: NEWERFORMAT, if a newer version has written the queue
-- @include "lib/argument"
-- @include "lib/format"

local function as_map(flat)
  local map = {}
  for i = 1, #flat, 2 do map[flat[i]] = flat[i + 1] end
  return map
end

local at = 4
local function take(n)
  local taken = {}
  for i = at, at + 2 * n - 1, 2 do taken[ARGV[i]] = ARGV[i + 1] end
  at = at + 2 * n
  return taken
end
local n_conf, n_routes, n_limits = argument(1, 0, #ARGV), argument(2, 0, #ARGV), argument(3, 0, #ARGV)
if #ARGV ~= 3 + 2 * (n_conf + n_routes + n_limits) then error('the number of arguments fits no counts') end
local conf, routes, limits = take(n_conf), take(n_routes), take(n_limits)

local before, limits_before = as_map(redis.call('HGETALL', conf_key)), as_map(redis.call('HGETALL', limits_key))
check_format(redis.call('HGET', meta_key, 'format')) -- a key of another type fails here, before the first write
local of_others = {}
for _, name in ipairs(redis.call('HKEYS', routes_key)) do
  if not routes[name] then
    of_others[name] = true
    for _, setting in ipairs({ 'max_waiting:' .. name, 'max_attempts:' .. name }) do conf[setting] = conf[setting] or before[setting] end
  end
end
for subject, limit in pairs(limits_before) do
  if of_others[string.match(subject, '^e:(.*)%.') or ''] then limits[subject] = limits[subject] or limit end
end

local limited = {}
for subject, limit in pairs(limits) do
  if limit ~= '0 0' then limited[string.sub(subject, 1, 1)] = true end
end
conf.limits = (limited.t and 't' or '') .. (limited.e and 'e' or '')

local changed = false
local function compare(some, others)
  for subject, limit in pairs(some) do changed = changed or others[subject] ~= limit end
end
compare(limits, limits_before)
compare(limits_before, limits)

local FIELDS_AT_ONCE = 1000

local function put_all(key, map)
  local flat = {}
  for name, value in pairs(map) do
    flat[#flat + 1], flat[#flat + 2] = name, value
    if #flat == 2 * FIELDS_AT_ONCE then
      redis.call('HSET', key, unpack(flat))
      flat = {}
    end
  end
  if #flat > 0 then redis.call('HSET', key, unpack(flat)) end
end

redis.call('DEL', conf_key, limits_key)
redis.call('HSET', meta_key, 'format', FORMAT)
put_all(conf_key, conf)
put_all(routes_key, routes)
put_all(limits_key, limits)
for subject, limit in pairs(limits) do
  -- Use under another limit does not count under this one.
  if (limits_before[subject] or limit) ~= limit then redis.call('DEL', bucket_key(subject)) end
end
-- Held jobs may be free to run now: tick examines all of them.
if changed then redis.call('HSET', meta_key, 'limits changed', '0 0') end
return 1
