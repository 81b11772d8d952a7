-- The code that livebridge runs inside Redis; each call is atomic. This file: channels with their
-- names, rules and keys. library.rs joins the files of this folder into a library of Redis
-- Functions, or into a script where functions are not allowed, and prepends RULES, DEFAULT_RULE,
-- PREFIX, with which the names of all channels of this application begin, and SHARDED, which says
-- whether this server is a node of a Redis Cluster.
--
-- Keys of a channel, all in its hash slot:
--   livebridge:{CHANNEL}:head     string: EPOCH OFFSET STAMP BYTES, and on a keyed channel
--                                 KEY_BYTES REMOVED FORGOTTEN:
--                                   OFFSET, STAMP  of the newest message (stamp: milliseconds)
--                                   BYTES          payload bytes of all messages of the epoch
--                                   KEY_BYTES      bytes of all keys and values
--                                   REMOVED        number of remembered removals
--                                   FORGOTTEN      removals up to this offset are forgotten
--   livebridge:{CHANNEL}:history  list with two elements per message: a header and the payload. The
--                                 header is a copy of `head`, EPOCH OFFSET STAMP BYTES, as it was
--                                 before this message; then REMOVED KEY, if the message has a key.
--   livebridge:{CHANNEL}:values   hash: key -> offset (16 digits), stamp (13), removed (1), payload
--   livebridge:{CHANNEL}:order    sorted set: key, by the offset of its last change
--   livebridge:{CHANNEL}:removed  sorted set: removed key, by the offset of its removal
--   livebridge:{CHANNEL}:id:ID    string: EPOCH:OFFSET of the message with this idempotency id, or
--                                 - if the channel has no history
--   livebridge:{CHANNEL}:lost     string, only if SHARDED: microsecond of the last detected loss
-- One key for all channels or, if SHARDED, for all channels of a hash slot, with a tag of that slot:
--   livebridge:life, or livebridge:life:{TAG}
--                                 string: microsecond since which this data set is complete

-- The TTL of a channel's keys and of idempotency ids, in seconds.
local RETAIN, REMEMBER = 86400, 600
local MOST_REMOVED = 1000
local MOST_CACHED = 4096
-- The length of the offset, the stamp and the removal flag before a key's value.
local VALUE_PREFIX = 30
-- If SHARDED, the call names it.
local LIFE = 'livebridge:life'
-- Defined in format1.lua.
local adopt
-- On a Cluster, only the subscribers of a channel's own shard receive its messages.
local PUBLISH = SHARDED and 'SPUBLISH' or 'PUBLISH'
local RESERVED = {'livebridge:', '__keyspace@', '__keyevent@', '__sentinel__:', '__redis__:'}

local function invalid(what) return 'LIVEBRIDGE_INVALID ' .. what end

-- Calls visit with each code point; false if the text is not UTF-8 (RFC 3629).
local function each_code_point(text, visit)
  local at, size = 1, #text
  while at <= size do
    local lead = string.byte(text, at)
    local more, code, least = 0, lead, 0
    if lead >= 0xF0 then more, code, least = 3, lead - 0xF0, 0x10000
    elseif lead >= 0xE0 then more, code, least = 2, lead - 0xE0, 0x800
    elseif lead >= 0xC0 then more, code, least = 1, lead - 0xC0, 0x80
    elseif lead >= 0x80 then return false end
    for i = 1, more do
      local byte = string.byte(text, at + i)
      if not byte or byte < 0x80 or byte > 0xBF then return false end
      code = code * 64 + byte - 0x80
    end
    if code < least or code > 0x10FFFF or (code >= 0xD800 and code <= 0xDFFF) then return false end
    if visit(code) == false then return false end
    at = at + more + 1
  end
  return true
end

local function is_control(code) return code < 0x20 or (code >= 0x7F and code <= 0x9F) end

local SPACES = {[0x20] = 1, [0x85] = 1, [0xA0] = 1, [0x1680] = 1, [0x2028] = 1, [0x2029] = 1,
  [0x202F] = 1, [0x205F] = 1, [0x3000] = 1}

-- Returns why a text is not a channel name, or nil. The rules are those of channel.rs.
local function channel_problem(name)
  if #name == 0 then return 'a channel name must not be empty' end
  if #name > 255 then return 'a channel name has at most 255 bytes' end
  if string.find(name, '[^%w:]') then
    local fine = not string.find(name, '[%*%?%[%]{}\\"<>]') and each_code_point(name, function(code)
      return not (is_control(code) or SPACES[code] or (code >= 0x2000 and code <= 0x200A) or code == 0xFFFD)
    end)
    if not fine then
      return 'a channel name must be UTF-8 without white space, control characters or any of * ? [ ] { } \\ " < >'
    end
  end
  for _, prefix in ipairs(RESERVED) do
    if string.sub(name, 1, #prefix) == prefix then return 'channel names that start with ' .. prefix .. ' are reserved' end
  end
end

-- Whether a text is a valid key or id. The rules are those of http/query.rs.
local function is_key(text)
  if #text == 0 or #text > 255 then return false end
  if not string.find(text, '[%c\128-\255]') then return true end
  return each_code_point(text, function(code) return not is_control(code) and code ~= 0xFFFD end)
end

-- Whether a name matches a pattern, given as the pieces between its asterisks. Like ChannelPattern
-- in channel.rs: always takes the leftmost match, so the time for each piece is linear in the name.
local function matches(pieces, name)
  local count, first = #pieces, pieces[1]
  if string.sub(name, 1, #first) ~= first then return false end
  if count == 1 then return #name == #first end
  local at = #first + 1
  for i = 2, count - 1 do
    local _, to = string.find(name, pieces[i], at, true)
    if not to then return false end
    at = to + 1
  end
  local last = pieces[count]
  return #name - at + 1 >= #last and string.sub(name, #name - #last + 1) == last
end

local function rule_of(name)
  for _, rule in ipairs(RULES) do
    if matches(rule.match, name) then return rule end
  end
  return DEFAULT_RULE
end

local cached, cached_count = {}, 0

-- Returns the names and the rule of a channel, called `it` in all functions; nil and an error text
-- if the name is not valid.
local function channel_of(name)
  local it = cached[name]
  if it then return it end
  if string.sub(name, 1, #PREFIX) ~= PREFIX then return nil, invalid('the names of channels start with ' .. PREFIX .. ' here') end
  local own = string.sub(name, #PREFIX + 1)
  local problem = channel_problem(own)
  if problem then return nil, invalid(problem) end
  local base = 'livebridge:{' .. name .. '}:'
  -- On a Cluster, the companions must be in the hash slot of the channel.
  local companion = SHARDED and '{' .. name .. '}' or name
  it = {
    name = name, rule = rule_of(own), base = base,
    head = base .. 'head', history = base .. 'history', values = base .. 'values',
    order = base .. 'order', removed = base .. 'removed',
    note = 'livebridge:note:' .. companion, run = 'livebridge:run:' .. companion,
  }
  if cached_count == MOST_CACHED then cached, cached_count = {}, 0 end
  cached[name], cached_count = it, cached_count + 1
  return it
end

-- Returns the channel of a call, as channel_of does. A call names either the channel, or its keys
-- `head` and `history`. A Cluster needs the keys: while their slot moves to another shard, it then
-- serves the call only where both of them are.
local function channel_of_call(keys)
  local name = keys[1]
  if #keys == 2 then
    name = string.match(keys[1], '^livebridge:{(.*)}:head$')
    if not name or keys[2] ~= 'livebridge:{' .. name .. '}:history' then
      return nil, invalid('the two keys must be livebridge:{CHANNEL}:head and livebridge:{CHANNEL}:history')
    end
  elseif SHARDED then
    return nil, invalid('on a Redis Cluster, call it with 2 livebridge:{CHANNEL}:head livebridge:{CHANNEL}:history in place of 1 CHANNEL')
  end
  return channel_of(name)
end

-- Raises an error if the slot of a channel is moving to another shard, because keys that a call has
-- not named may already be there. A key that does not exist is enough to find out.
local function stand_still(it)
  if SHARDED then redis.call('EXISTS', it.base .. 'none') end
end

local function microseconds(time) return time[1] * 1000000 + time[2] end

-- Returns the fields of a channel's head, with the counts of a keyed channel as text; nothing if it
-- has no head. Raises UNREADABLE.
local function head_of(it)
  local head = redis.call('GET', it.head)
  if not head then return end
  local epoch, offset, stamp, bytes, counts = string.match(head, '^(%d+) (%d+) (%d+) (%d+)(.*)$')
  if not epoch then error('UNREADABLE head') end
  return epoch, tonumber(offset), tonumber(stamp), tonumber(bytes), counts
end

-- Returns the number of messages in the history list; 0 if the key has another type or the list has
-- foreign elements.
local function messages_kept(it)
  local length = redis.pcall('LLEN', it.history)
  return type(length) == 'number' and length % 2 == 0 and length / 2 or 0
end

-- Parses the counts of a keyed channel: bytes of its keys and values, number of remembered
-- removals, and the offset up to which removals are forgotten.
local function key_counts(counts)
  local bytes, removed, forgotten = string.match(counts, '^ (%d+) (%d+) (%d+)$')
  return tonumber(bytes or 0), tonumber(removed or 0), tonumber(forgotten or 0)
end

-- Returns the header of the message with an offset, and its contents: the stamp of the previous
-- message, and the bytes up to it. Returns nothing if that element is not such a header. `first` is
-- the offset of the first message in the list.
local function header_at(it, offset, first)
  local header = redis.call('LINDEX', it.history, 2 * (offset - first))
  if not header then return end
  local before, stamp, bytes = string.match(header, '^%d+ (%d+) (%d+) (%d+)')
  if tonumber(before) == offset - 1 then return header, tonumber(stamp), tonumber(bytes) end
end

-- Returns the stamp of a message; nothing if it is unreadable.
local function stamp_at(it, offset, first, tail, tail_stamp)
  if offset == tail then return tail_stamp end
  local _, stamp = header_at(it, offset + 1, first)
  return stamp
end

-- Returns the oldest offset in the history within the limits on count and age, and newer than a
-- stamp. If there is none, returns the offset after the tail, and true if foreign elements are the
-- reason. Stamps never decrease, so this is a binary search.
local function oldest_kept(it, first, tail, tail_stamp, milliseconds, newer_than)
  local rule = it.rule
  local low, high = math.max(first, tail + 1 - rule.messages), tail + 1
  local cutoff = math.max(milliseconds - rule.age, newer_than + 1)
  local at = low
  while low < high do
    local stamp = stamp_at(it, at, first, tail, tail_stamp)
    if not stamp then return tail + 1, true end
    if stamp >= cutoff then high = at else low = at + 1 end
    at = math.floor((low + high) / 2)
  end
  return low
end
