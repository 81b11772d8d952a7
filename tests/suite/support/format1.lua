-- What livebridge does inside Redis, each call atomic. Loaded as a library of Redis Functions, or as a script where
-- functions are forbidden. RULES is put in front by the instance that loads it (library.rs).
--
-- Keys of a channel, all in its hash slot:
--   livebridge:{CHANNEL}:meta   hash: e epoch, o offset, t stamp (ms) of the newest message, x stamp of the last time that
--                               expiries were set; kb, kd, kf see 'keys'
--   livebridge:{CHANNEL}:log    stream: ID is OFFSET-STAMP; fields p payload, k key, r '1' if removed
--   livebridge:{CHANNEL}:keys   hash: key -> OFFSET-STAMP-REMOVED:PAYLOAD; meta kb bytes, kd removed keys still
--                               remembered, kf removals up to this offset are forgotten
--   livebridge:{CHANNEL}:id:ID  'EPOCH:OFFSET', the answer to an idempotency id

local RETAIN, REMEMBER, MOST_TOMBSTONES = 86400, 600, 1000

local function rule_of(channel)
  for _, rule in ipairs(RULES) do
    if string.find(channel, rule.match) then return rule end
  end
  return DEFAULT_RULE
end

local function key_of(channel, what) return 'livebridge:{' .. channel .. '}:' .. what end
local function whole(number) return string.format('%.0f', number) end

local function now()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

-- Where the channel stands; begins its first epoch where there is none.
local function open(channel)
  local meta = key_of(channel, 'meta')
  local held = redis.call('HMGET', meta, 'e', 'o', 't', 'x')
  if held[1] then return held[1], tonumber(held[2]), held[3], tonumber(held[4]) end
  local epoch = whole(now())
  redis.call('DEL', key_of(channel, 'log'), key_of(channel, 'keys'))
  redis.call('HSET', meta, 'e', epoch, 'o', '0', 't', '0', 'x', '0')
  redis.call('EXPIRE', meta, RETAIN)
  return epoch, 0, '0', 0
end

local function parse_key(value)
  local offset, stamp, removed, start = string.match(value, '^(%d+)-(%d+)-([01]):()')
  return tonumber(offset), stamp, removed, string.sub(value, start)
end

local function forget_tombstones(channel, upto)
  local keys, bytes = key_of(channel, 'keys'), 0
  local all = redis.call('HGETALL', keys)
  for i = 1, #all, 2 do
    local _, _, removed, payload = parse_key(all[i + 1])
    if removed == '1' then redis.call('HDEL', keys, all[i]) else bytes = bytes + #all[i] + #payload end
  end
  redis.call('HSET', key_of(channel, 'meta'), 'kb', bytes, 'kd', 0, 'kf', whole(upto))
end

-- Keeps the newest value of a key; returns an error text if that is beyond the rule's bounds.
local function set_key(channel, rule, key, payload, removed, offset, stamp)
  local keys, meta = key_of(channel, 'keys'), key_of(channel, 'meta')
  local counts = redis.call('HMGET', meta, 'kb', 'kd')
  local bytes, dead = tonumber(counts[1] or 0), tonumber(counts[2] or 0)
  local live = redis.call('HLEN', keys) - dead
  local old = redis.call('HGET', keys, key)
  if old then
    local _, _, was_removed, was = parse_key(old)
    bytes = bytes - #key - #was
    if was_removed == '1' then dead = dead - 1 else live = live - 1 end
  end
  bytes = bytes + #key + #payload
  if removed then
    dead = dead + 1
  else
    if live + 1 > rule.keys then return rule.keys .. ' keys' end
    if bytes > rule.bytes then return rule.bytes .. ' bytes' end
  end
  redis.call('HSET', keys, key, whole(offset) .. '-' .. stamp .. '-' .. (removed and '1' or '0') .. ':' .. payload)
  redis.call('HSET', meta, 'kb', bytes, 'kd', dead)
  if dead > MOST_TOMBSTONES then forget_tombstones(channel, offset) end
end

-- livebridge_publish 1 CHANNEL PAYLOAD [key KEY] [remove] [id ID]
-- Returns {EPOCH, OFFSET}, or {} where the channel keeps no history.
local function publish(keys, args)
  local channel, payload = keys[1], args[1]
  if not channel or not payload then
    return redis.error_reply('LIVEBRIDGE usage: FCALL livebridge_publish 1 CHANNEL PAYLOAD [key KEY] [remove] [id ID]')
  end
  local key, removed, id
  local i = 2
  while i <= #args do
    local word = string.lower(args[i])
    if word == 'remove' then removed = true
    elseif word == 'key' and args[i + 1] then key = args[i + 1]; i = i + 1
    elseif word == 'id' and args[i + 1] then id = args[i + 1]; i = i + 1
    else return redis.error_reply('LIVEBRIDGE unknown option ' .. args[i] .. '; known: key KEY, remove, id ID') end
    i = i + 1
  end
  local rule = rule_of(channel)
  if (key or removed) and not rule.keyed then return redis.error_reply('LIVEBRIDGE_NOT_KEYED the channel is not keyed; change its rule') end
  if not rule.messages then
    redis.call('PUBLISH', channel, payload)
    return {}
  end
  if id then
    local known = redis.call('GET', key_of(channel, 'id:' .. id))
    if known then
      local epoch, offset = string.match(known, '^(%d+):(%d+)$')
      return {epoch, tonumber(offset)}
    end
  end
  local epoch, last, _, expiries_set = open(channel)
  local milliseconds = math.floor(now() / 1000)
  local offset, stamp = last + 1, whole(milliseconds)
  if key then
    local full = set_key(channel, rule, key, payload, removed, offset, stamp)
    if full then return redis.error_reply('LIVEBRIDGE_FULL ' .. full) end
  end
  local number = whole(offset)
  local meta, log = key_of(channel, 'meta'), key_of(channel, 'log')
  local entry = {'XADD', log, 'MAXLEN', '=', rule.messages, number .. '-' .. stamp, 'p', payload}
  if key then entry[#entry + 1] = 'k'; entry[#entry + 1] = key end
  if removed then entry[#entry + 1] = 'r'; entry[#entry + 1] = '1' end
  redis.call(unpack(entry))
  -- Expiries are set anew once a second at most, with that second added: under load they would be a quarter of the cost.
  if milliseconds - expiries_set >= 1000 or milliseconds < expiries_set then
    redis.call('HSET', meta, 'o', number, 't', stamp, 'x', stamp)
    redis.call('EXPIRE', meta, RETAIN)
    redis.call('PEXPIRE', log, rule.age + 1000)
    if rule.keyed then redis.call('EXPIRE', key_of(channel, 'keys'), RETAIN) end
  else
    redis.call('HSET', meta, 'o', number, 't', stamp)
  end
  if id then redis.call('SET', key_of(channel, 'id:' .. id), epoch .. ':' .. number, 'EX', REMEMBER) end
  -- The note and the payload reach every subscriber next to each other: the call is atomic.
  redis.call('PUBLISH', 'livebridge:note:' .. channel,
    epoch .. ' ' .. number .. ' ' .. stamp .. ' ' .. (removed and '1' or '0') .. (key and (' ' .. key) or ''))
  redis.call('PUBLISH', channel, payload)
  return {epoch, offset}
end

local function add_entry(page, id, fields)
  local offset, stamp = string.match(id, '^(%d+)-(%d+)$')
  local entry = {offset, stamp, '', '0', ''}
  for i = 1, #fields, 2 do
    local field, value = fields[i], fields[i + 1]
    if field == 'p' then entry[5] = value elseif field == 'k' then entry[3] = value elseif field == 'r' then entry[4] = '1' end
  end
  page[#page + 1] = entry
  return offset, stamp, #entry[5]
end

-- The page's entries from an offset on, as far as count and bytes allow; returns what one then holds.
local function read_log(page, channel, first, count, bytes, oldest_stamp)
  local through, stamp, size = nil, nil, 0
  local step = math.min(count, 100)
  local from = whole(first)
  while count > 0 do
    local asked = math.min(step, count)
    local entries = redis.call('XRANGE', key_of(channel, 'log'), from, '+', 'COUNT', asked)
    for _, entry in ipairs(entries) do
      local offset, at, length = add_entry(page, entry[1], entry[2])
      size = size + length
      if through and size > bytes then
        page[#page] = nil
        return through, stamp, false
      end
      through, stamp, count = offset, at, count - 1
    end
    if #entries < asked then return through, stamp, true end
    from = '(' .. entries[#entries][1]
  end
  return through, stamp, false
end

-- The values of a keyed channel that changed after an offset, oldest change first.
local function read_keys(page, channel, after, with_removed)
  local all, changed = redis.call('HGETALL', key_of(channel, 'keys')), {}
  for i = 1, #all, 2 do
    local offset, stamp, removed, payload = parse_key(all[i + 1])
    if offset > after and (with_removed or removed == '0') then
      changed[#changed + 1] = {offset, stamp, all[i], removed, payload}
    end
  end
  table.sort(changed, function(a, b) return a[1] < b[1] end)
  for _, entry in ipairs(changed) do
    entry[1] = whole(entry[1])
    page[#page + 1] = entry
  end
end

-- The oldest offset whose message is still kept by count and age, and newer than a stamp; the tail's next if none is.
local function oldest_of(channel, rule, tail, newer_than)
  local cutoff = math.max(math.floor(now() / 1000) - rule.age, newer_than + 1)
  local from = '-'
  while true do
    local entries = redis.call('XRANGE', key_of(channel, 'log'), from, '+', 'COUNT', 50)
    for _, entry in ipairs(entries) do
      local offset, stamp = string.match(entry[1], '^(%d+)-(%d+)$')
      if tonumber(stamp) >= cutoff then return tonumber(offset) end
    end
    if #entries < 50 then return tail + 1 end
    from = '(' .. entries[#entries][1]
  end
end

-- Whether the history went another way than what an instance has delivered.
local function diverged(channel, tail, offset, stamp)
  if offset > tail then return true end
  if stamp == '0' then return false end
  local held = redis.call('XRANGE', key_of(channel, 'log'), whole(offset), whole(offset))[1]
  return held ~= nil and held[1] ~= whole(offset) .. '-' .. stamp
end

-- livebridge_read 1 CHANNEL COUNT BYTES MODE [EPOCH OFFSET [STAMP]]   MODE: tail, oldest, last, after, delivered, keys
-- Returns {} where the channel keeps no history, else
-- {epoch, tail offset, tail stamp, gap reason or '', gap offset, through offset, through stamp, entry, …},
-- each entry {offset, stamp, key or '', removed, payload}.
local function read(keys, args)
  local channel, count, bytes, mode = keys[1], tonumber(args[1]), tonumber(args[2]), args[3]
  local rule = rule_of(channel)
  if not rule.messages then return {} end
  local epoch, tail, tail_stamp = open(channel)
  local page = {epoch, whole(tail), tail_stamp, '', '0', whole(tail), tail_stamp}
  if mode == 'tail' then return page end
  if mode == 'keys' then
    read_keys(page, channel, 0, false)
    return page
  end
  local oldest, first = oldest_of(channel, rule, tail, 0), nil
  if mode == 'oldest' then
    first = oldest
  elseif mode == 'last' then
    first = math.max(oldest, tail + 1 - count)
  else
    local their_epoch, offset = args[4], tonumber(args[5])
    if mode == 'delivered' and their_epoch == epoch and diverged(channel, tail, offset, args[6]) then
      -- Someone was given what this Redis no longer has: what follows must not be taken for its continuation.
      epoch = whole(math.max(now(), tonumber(epoch) + 1))
      redis.call('HSET', key_of(channel, 'meta'), 'e', epoch)
      page[1] = epoch
    end
    local reason = ''
    if their_epoch ~= epoch or offset > tail then reason = 'epoch_changed'
    elseif offset + 1 < oldest then reason = 'history_trimmed' end
    if rule.keyed and reason ~= '' then
      local forgotten = tonumber(redis.call('HGET', key_of(channel, 'meta'), 'kf') or 0)
      if reason == 'history_trimmed' and offset >= forgotten then
        read_keys(page, channel, offset, true)
      else
        page[4] = reason
        read_keys(page, channel, 0, false)
      end
      return page
    end
    first = offset + 1
    if reason ~= '' then
      -- Under another epoch stand messages that the instance may have delivered already: their stamps tell.
      if reason == 'epoch_changed' and mode == 'delivered' then
        oldest = oldest_of(channel, rule, tail, tonumber(args[6]))
      end
      first = oldest
      page[4], page[5] = reason, whole(oldest - 1)
    end
  end
  if first <= tail and count > 0 then
    local through, stamp, complete = read_log(page, channel, first, count, bytes)
    if through and not complete then page[6], page[7] = through, stamp end
  end
  return page
end
