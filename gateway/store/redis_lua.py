"""What the server does for ``gateway.store.redis``, whose page names the keys: five scripts.

Each runs as a whole or not at all, also when the server is full: then those that take room are
refused before they have changed anything.
"""

from typing import Final

from gateway.store.redis_client import Script

_PRELUDE: Final = """
local P = KEYS[1]
local RANKS = {[0] = true, [1] = true, [2] = true}
local function groups(share)
  if share == '' then return {''} end
  return {'', share}
end
-- What is known of an entry; nil where that is damaged, or nothing.
local function record(key)
  local packed = redis.call('HGET', P..'m', key)
  if not packed then return nil end
  local whole, r = pcall(cmsgpack.unpack, packed)
  if not whole or type(r) ~= 'table' then return nil end
  local good = tonumber(r[1]) and RANKS[r[2]] and tonumber(r[3]) and tonumber(r[4])
  if good and type(r[5]) == 'string' and type(r[6]) == 'string' then return r end
end
local function number(field) return tonumber(redis.call('HGET', P..'t', field) or 0) end
local function drop(key)
  local r = record(key)
  redis.call('DEL', P..'e:'..key)
  redis.call('HDEL', P..'m', key)
  if not r then  -- damaged or gone: what it took and where else it stands is not known any more
    redis.call('ZREM', P..'x:', key)
    for rank = 0, 2 do redis.call('ZREM', P..'v:'..rank..':', key) end
    redis.call('ZREM', P..'i:*', key)
    return false
  end
  for _, g in ipairs(groups(r[5])) do
    redis.call('ZREM', P..'x:'..g, key)
    redis.call('ZREM', P..'v:'..r[2]..':'..g, key)
    redis.call('HINCRBY', P..'t', 'bytes:'..g, -r[1])
  end
  for i = 7, #r do redis.call('ZREM', P..'i:'..r[i], key) end
  return r[6]
end
local function prune(before)
  for _, key in ipairs(redis.call('ZRANGEBYSCORE', P..'x:', '-inf', before, 'LIMIT', 0, 64)) do
    if redis.call('EXISTS', P..'e:'..key) == 0 then drop(key) end
  end
end
local function bars(tenant)
  if tenant == '' then return {'c:'} end
  return {'c:', 'c:'..tenant}
end
-- A new counter starts at the time, and bars all that is older: a server that lost its data knows of
-- no clearing.
local function generation()
  local number = redis.call('GET', P..'c')
  if number then return number end
  local now = redis.call('TIME')
  number = now[1]..string.format('%06d', now[2])
  redis.call('SET', P..'c', number)
  redis.call('ZADD', P..'c:', number, '{}')
  return number
end
local function with_totals(result)
  table.insert(result, 1, generation())
  table.insert(result, 1, number('bytes:'))
  table.insert(result, 1, redis.call('HLEN', P..'m'))
  return result
end
"""

PUT: Final = Script.of(
    "#!lua\n"
    + _PRELUDE
    + """
local now, key, value, px, size = tonumber(ARGV[1]), ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local rank, cost, expires, meta = tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8], ARGV[9]
local share, most = ARGV[10], {[''] = tonumber(ARGV[11]), [ARGV[10]] = tonumber(ARGV[12])}
local tenant, own, since, seen = ARGV[15], ARGV[16], tonumber(ARGV[17]), ARGV[18]
if since then
  local number, later = generation(), {}
  if since > tonumber(number) then return with_totals({-2}) end
  for _, list in ipairs(bars(tenant)) do
    if (tonumber(redis.call('ZSCORE', P..list, own)) or 0) > since then return with_totals({-2}) end
    for _, what in ipairs(redis.call('ZRANGEBYSCORE', P..list, '('..seen, '+inf')) do
      table.insert(later, what)
    end
  end
  if #later > 0 then
    table.insert(later, 1, -1)
    return with_totals(later)
  end
end
drop(key)
prune(tonumber(ARGV[13]))
local r = record(ARGV[14])
if r then
  r[3] = 0
  redis.call('HSET', P..'m', ARGV[14], cmsgpack.pack(r))
  for _, g in ipairs(groups(r[5])) do
    local name = r[2]..':'..g
    redis.call('ZADD', P..'v:'..name, 'XX', number('floor:'..name), ARGV[14])
  end
end
local worth = cost / size
local function value_in(g)
  if redis.call('ZCARD', P..'v:'..rank..':'..g) == 0 then
    redis.call('HDEL', P..'t', 'floor:'..rank..':'..g)
  end
  return number('floor:'..rank..':'..g) + worth
end
local function victim(g)
  local expired = redis.call('ZRANGEBYSCORE', P..'x:'..g, '-inf', now, 'LIMIT', 0, 1)[1]
  if expired then return expired end
  for lower = 0, rank do
    local name = lower..':'..g
    local least = redis.call('ZRANGE', P..'v:'..name, 0, 0, 'WITHSCORES')
    if least[1] then
      if lower == rank and tonumber(least[2]) > value_in(g) then return nil end
      redis.call('HSET', P..'t', 'floor:'..name, least[2])
      return least[1]
    end
  end
end
-- A key without a record, if a server that had to drop keys has dropped those: not a second time.
local function forget(g, key)
  redis.call('ZREM', P..'x:'..g, key)
  for one = 0, 2 do redis.call('ZREM', P..'v:'..one..':'..g, key) end
end
if redis.call('HLEN', P..'m') == 0 then redis.call('DEL', P..'t') end
local evicted = {}
for _, g in ipairs({share, ''}) do
  while number('bytes:'..g) + size > most[g] do
    local least = size <= most[g] and victim(g)
    if not least then
      table.insert(evicted, 1, 0)
      return with_totals(evicted)
    end
    local head = drop(least)
    if head then table.insert(evicted, head) else forget(g, least) end
  end
end
local packed = {size, rank, worth, 1, share, meta}
for i = 19, #ARGV do
  packed[i - 12] = ARGV[i]
  redis.call('ZADD', P..'i:'..ARGV[i], 0, key)
end
redis.call('SET', P..'e:'..key, value, 'PX', px)
redis.call('HSET', P..'m', key, cmsgpack.pack(packed))
for _, g in ipairs(groups(share)) do
  redis.call('ZADD', P..'x:'..g, expires, key)
  redis.call('ZADD', P..'v:'..rank..':'..g, value_in(g), key)
  redis.call('HINCRBY', P..'t', 'bytes:'..g, size)
end
table.insert(evicted, 1, 1)
return with_totals(evicted)
"""
)
# A clearing must also be heard when the server is full.
BAR: Final = Script.of(
    "#!lua flags=allow-oom\n"
    + _PRELUDE
    + """
local at, most, list, what, all = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], ARGV[5]
generation()
if at == '' then at = string.format('%.0f', redis.call('INCR', P..'c')) end
if what then
  list = P..'c:'..list
  if tonumber(redis.call('ZSCORE', list, what) or 0) < tonumber(at) then
    redis.call('ZADD', list, at, what)
  end
  local oldest = nil
  while redis.call('ZCARD', list) > most do oldest = redis.call('ZPOPMIN', list)[2] end
  if oldest then redis.call('ZADD', list, oldest, all) end
end
return with_totals({at})
"""
)
TOUCH: Final = Script.of(
    "#!lua\n"
    + _PRELUDE
    + """
for i = 2, #ARGV, 2 do
  local r = record(ARGV[i])
  if r then
    r[4] = r[4] + tonumber(ARGV[i + 1])
    redis.call('HSET', P..'m', ARGV[i], cmsgpack.pack(r))
    for _, g in ipairs(groups(r[5])) do
      local name = r[2]..':'..g
      redis.call('ZADD', P..'v:'..name, 'XX', number('floor:'..name) + r[4] * r[3], ARGV[i])
    end
  end
end
prune(tonumber(ARGV[1]))
return with_totals({})
"""
)
# Taking away must also work when the server is full.
DROP: Final = Script.of(
    "#!lua flags=allow-oom\n"
    + _PRELUDE
    + """
local gone = {}
for _, key in ipairs(ARGV) do
  local meta = drop(key)
  if meta then table.insert(gone, meta) end
end
return with_totals(gone)
"""
)
LOOK: Final = Script.of(
    "#!lua flags=allow-oom\n"
    + _PRELUDE
    + """
prune('+inf')
local keys = {ARGV[1]}
if #ARGV > 1 then
  keys = redis.call('ZRANGEBYLEX', P..'i:'..ARGV[1], ARGV[2], '+', 'LIMIT', 0, ARGV[3])
end
local found = {keys[#keys] or '', #keys}
for _, key in ipairs(keys) do
  local r = redis.call('EXISTS', P..'e:'..key) == 1 and record(key)
  if r then
    table.insert(found, key)
    table.insert(found, r[6])
  elseif not drop(key) and #ARGV > 1 then  -- without a record no invalidation could judge it
    redis.call('ZREM', P..'i:'..ARGV[1], key)
  end
end
return with_totals(found)
"""
)
