-- A job's record is a small hash with short names, so that it stays a listpack. docs/architecture.md has the table of its fields.

-- The named fields of a job, or nil where there is no record that can be read.
local function read(id, names)
  local values = redis.pcall('HMGET', record_key(id), unpack(names))
  if values.err or not values[1] then return nil end
  local rec = {}
  for i = 1, #names do rec[names[i]] = values[i] or nil end
  return rec
end

-- All fields of a job: faster than naming many that are mostly absent.
local function read_all(id)
  local flat = redis.pcall('HGETALL', record_key(id))
  if flat.err or #flat == 0 then return nil end
  local rec = {}
  for i = 1, #flat, 2 do rec[flat[i]] = flat[i + 1] end
  return rec
end

-- The length of a job's request, bytes; 0 without one.
local function request_bytes(id)
  local bytes = redis.pcall('STRLEN', payload_key(id))
  return type(bytes) == 'number' and bytes or 0
end

-- When a job became ready to run, ms. A rank says so too, unless the job took over another's.
local function ready_ms(rec) return tonumber(rec.R) or math.floor(rec.q / 1000) end

local LIVE = { waiting = true, delayed = true, held = true, running = true }
local ENDED = { done = true, failed = true, cancelled = true, expired = true, shed = true }

-- The jobs of a tenant that a limit holds back wait in a lane of their own. No name has a space.
local function held_lane(lane, tenant) return lane .. ' ' .. (tenant or 'default') end

-- A job that has lost its worker process twice may have killed it. A process runs one suspect at a time, so they wait in a
-- lane of their own: nothing has to walk past them. No tenant is called '!'.
local function is_suspect(rec) return tonumber(rec.o or 0) >= LOSSES_OF_A_SUSPECT end
local function suspects_lane(lane) return lane .. ' !' end

local function is_held(lane) return string.find(lane, ' [^!]') ~= nil end
local function lane_of(place) return string.match(place, '^%S+') or place end

-- The place of a waiting or held job: its lane, or a lane beside that.
local function place_of(rec)
  if rec.s == 'held' then return held_lane(rec.l, rec.t) end
  return is_suspect(rec) and suspects_lane(rec.l) or rec.l
end

-- Fields that other scripts or Python read as whole numbers.
local NUMBERS = { 'q', 'R', 'x', 'u', 'n', 'f', 'W', 'o', 'a', 'g', 'k', 'b', 'c', 'e', 'j', 'H' }

-- Whether the fields that were read are as the queue writes them, so that no script fails on them half-way.
local function sound(rec)
  if not (rec and rec.l and (LIVE[rec.s] or ENDED[rec.s])) then return false end
  if not (rec.p and string.find(rec.p, '^%d$')) then return false end
  for i = 1, #NUMBERS do
    local value = rec[NUMBERS[i]]
    if value and (#value > 16 or not string.find(value, '^%d+$')) then return false end
  end
  return true
end
