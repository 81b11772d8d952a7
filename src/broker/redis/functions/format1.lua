-- Format 1, which livebridge 0.1 uses: converts its stored data, and answers its instances during a
-- rolling upgrade.
--   livebridge:{CHANNEL}:meta  hash: e epoch, o offset, t stamp
--   livebridge:{CHANNEL}:log   stream: ID is OFFSET-STAMP, fields are p payload, k key and, for a
--                              removal, r '1'
--   livebridge:{CHANNEL}:keys  hash: key -> OFFSET-STAMP-REMOVED:PAYLOAD

-- Copies the values of a keyed channel. Returns the counts for the head.
local function adopt_values(it)
  local all = redis.call('HGETALL', it.base .. 'keys')
  local bytes, removed = 0, 0
  for i = 1, #all, 2 do
    local offset, stamp, gone, start = string.match(all[i + 1], '^(%d+)-(%d+)-([01]):()')
    if offset and is_key(all[i]) then
      local payload = string.sub(all[i + 1], start)
      redis.call('HSET', it.values, all[i], string.format('%016d%013d', offset, stamp) .. gone .. payload)
      redis.call('ZADD', it.order, offset, all[i])
      if gone == '1' then
        redis.call('ZADD', it.removed, offset, all[i])
        removed = removed + 1
      end
      bytes = bytes + #all[i] + #payload
    end
  end
  return bytes, removed
end

-- Copies the stream into the list, from its newest hole on. Returns the bytes of its payloads.
local function adopt_log(it, epoch, tail)
  local expected, bytes, from, previous = nil, 0, '-', 0
  repeat
    local entries = redis.call('XRANGE', it.base .. 'log', from, '+', 'COUNT', 200)
    for _, entry in ipairs(entries) do
      local offset, stamp = string.match(entry[1], '^(%d+)-(%d+)$')
      local fields = {}
      for i = 1, #entry[2], 2 do fields[entry[2][i]] = entry[2][i + 1] end
      offset = tonumber(offset)
      if offset <= tail and fields.p and (not fields.k or is_key(fields.k)) then
        if expected and offset ~= expected then redis.call('DEL', it.history) end
        local change = fields.k and (fields.r == '1' and ' 1 ' or ' 0 ') .. fields.k or ''
        redis.call('RPUSH', it.history, string.format('%s %d %d %d', epoch, offset - 1, previous, bytes) .. change, fields.p)
        bytes, expected, previous = bytes + #fields.p, offset + 1, stamp
      end
      from = '(' .. entry[1]
    end
  until #entries < 200
  if expected ~= tail + 1 then redis.call('DEL', it.history) end
  return bytes
end

-- Converts the stored data of a channel from format 1. Returns false if there is none or it is
-- unreadable.
function adopt(it)
  local meta = it.base .. 'meta'
  local held = redis.call('HMGET', meta, 'e', 'o', 't', 'kf')
  local epoch, tail, stamp = held[1], tonumber(held[2]), tonumber(held[3])
  if not (epoch and tail and stamp and string.find(epoch, '^%d+$')) then
    redis.call('UNLINK', meta, it.base .. 'log', it.base .. 'keys')
    return false
  end
  redis.call('UNLINK', it.history, it.values, it.order, it.removed)
  local head = string.format('%s %d %d %d', epoch, tail, stamp, adopt_log(it, epoch, tail))
  if it.rule.keyed then
    local key_bytes, removed = adopt_values(it)
    head = head .. string.format(' %d %d %d', key_bytes, removed, held[4] or 0)
  end
  redis.call('SET', it.head, head, 'EX', RETAIN)
  redis.call('PEXPIRE', it.history, it.rule.age + 1000)
  for _, key in ipairs({it.values, it.order, it.removed}) do redis.call('EXPIRE', key, RETAIN) end
  redis.call('UNLINK', meta, it.base .. 'log', it.base .. 'keys')
  return true
end

-- livebridge_adopt 1 CHANNEL
local function adopt_channel(keys)
  local it = channel_of_call(keys)
  if it and it.rule.messages and redis.call('EXISTS', it.head) == 0 then adopt(it) end
  return {}
end

-- livebridge_read 1 CHANNEL COUNT BYTES MODE [EPOCH OFFSET [STAMP]]
-- Returns a whole page in format 1:
--   {epoch, tail offset, tail stamp, gap reason, gap offset, through offset, through stamp,
--    entry, ...}
-- with entries {offset, stamp, key or '', removed, payload}.
local function read(keys, args)
  local found = plan(keys, args)
  if found[1] == 'adopt' then
    adopt_channel(keys)
    found = plan(keys, args)
  end
  if found[1] == 'diverged' then
    renew(keys, {args[4], args[5], args[6] or '0'})
    found = plan(keys, args)
  end
  if not found[8] then return found end
  local it, page = channel_of_call(keys), {}
  for i = 1, 7 do page[i] = found[i] end
  if found[8] == 'list' then
    local elements = redis.call('LRANGE', it.history, found[9], found[10])
    for i = 1, #elements, 2 do
      local before, removed, key = string.match(elements[i], '^%d+ (%d+) %d+ %d+ ?([01]?) ?(.*)$')
      local stamp = elements[i + 2] and string.match(elements[i + 2], '^%d+ %d+ (%d+)') or page[7]
      page[#page + 1] = {string.format('%d', before + 1), stamp, key, removed == '1' and '1' or '0', elements[i + 1]}
    end
  elseif found[8] == 'keys' then
    if page[4] ~= '' or args[3] == 'keys' then page[5] = '0' end
    -- Format 1 returns all values in one page.
    local whole = found[6] == found[2] and found or plan_read(it, {'1000000', '1000000000', 'keys', '', page[4] == '' and args[5] or '0'}, 0)
    page[6], page[7] = page[2], page[3]
    for i = 9, #whole, 2 do
      local value = redis.call('HGET', it.values, whole[i + 1])
      local removed = string.sub(value, 30, 30)
      if removed == '0' or page[4] == '' and args[3] ~= 'keys' then
        page[#page + 1] = {string.format('%d', whole[i]), string.match(string.sub(value, 17, 29), '0*(%d+)'), whole[i + 1], removed, string.sub(value, 31)}
      end
    end
  end
  return page
end
