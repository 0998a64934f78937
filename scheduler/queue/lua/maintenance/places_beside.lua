-- Corrects the places beside the lanes: those with a bitmap, and those that are listed as held. Some of them a call.
-- begins: whether walks that are over begin anew. Returns whether there are more.
local function mend_places_beside(begins, at_once)
  local under_way = redis.call('HMGET', meta_key, 'beside at', 'limited at')
  local function mend_some(command, key, field, bookmark)
    if not (bookmark or begins) then return false end
    local members, next_bookmark = walk(command, key, bookmark, at_once)
    local size = command == 'HSCAN' and 'HLEN' or 'ZCARD'
    local before = #members > 0 and redis.call(size, key)
    for i = 1, #members, 2 do mend_place(members[i]) end
    if next_bookmark then
      redis.call('HSET', meta_key, field, bookmark_after(next_bookmark, before - redis.call(size, key)))
    elseif bookmark then
      redis.call('HDEL', meta_key, field)
    end
    return next_bookmark
  end
  local more = mend_some('HSCAN', beside_key, 'beside at', under_way[1])
  return mend_some('ZSCAN', limited_key, 'limited at', under_way[2]) or more
end
