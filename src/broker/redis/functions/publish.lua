-- Publishing: one message, or many of a channel in one call. Read channel.lua first. Entry points:
-- publish and publish_many, at the end.

local MOST_ROWS = 1000
-- A history of larger messages is trimmed exactly; one of smaller messages may exceed its limit by
-- some elements.
local SMALL, SLACK = 1024, 32
local ID_REUSED = {err = 'LIVEBRIDGE_ID_REUSED the id was used for another message'}
local NOT_KEYED = {err = 'LIVEBRIDGE_NOT_KEYED the channel is not keyed; change its rule'}

local function text_of(failure) return type(failure) == 'table' and failure.err or tostring(failure) end

-- Records that messages were lost. After this, offset 0 is trusted only if its epoch is later than
-- the loss.
local function record_loss(it)
  local now = string.format('%.0f', microseconds(redis.call('TIME')))
  if SHARDED then redis.call('SET', it.base .. 'lost', now, 'EX', RETAIN) else redis.call('SET', LIFE, now) end
end

-- Removes all stored data of a channel, because some of it is unreadable.
local function reset(it)
  redis.call('UNLINK', it.head, it.history, it.values, it.order, it.removed, it.base .. 'meta', it.base .. 'log', it.base .. 'keys')
  record_loss(it)
end

-- Whether a stored message differs from a row; false if the message is no longer stored.
local function differs(it, row, offset, last)
  local first = last - messages_kept(it) + 1
  local header = offset >= first and offset <= last and header_at(it, offset, first)
  if not header then return false end
  local removed, key = string.match(header, '^%d+ %d+ %d+ %d+ ([01]) (.*)$')
  return key ~= row.key or (removed == '1') ~= (row.remove ~= nil)
    or redis.call('LINDEX', it.history, 2 * (offset - first) + 1) ~= row.payload
end

-- Returns the answer for a known id: its offset; 'EPOCH:OFFSET' if it has another epoch; or an
-- error.
local function remembered(it, row, epoch, last)
  local known = redis.pcall('GET', it.base .. 'id:' .. row.id)
  if type(known) ~= 'string' then return end
  local their_epoch, offset = string.match(known, '^(%d+):(%d+)$')
  if not their_epoch then return end
  -- A write, for which a caller can wait until replicas have it, and with it the first message.
  redis.call('SET', it.base .. 'id:' .. row.id, known, 'KEEPTTL')
  if their_epoch ~= epoch then return known end
  return differs(it, row, tonumber(offset), last) and ID_REUSED or tonumber(offset)
end

-- Forgets the oldest removal. Returns its offset and the freed bytes.
local function forget_removal(it)
  local oldest = redis.call('ZPOPMIN', it.removed)
  local size = redis.call('HSTRLEN', it.values, oldest[1])
  redis.call('HDEL', it.values, oldest[1])
  redis.call('ZREM', it.order, oldest[1])
  return tonumber(oldest[2]), #oldest[1] + size - VALUE_PREFIX
end

-- Stores the newest value of a key. Returns the new counts, or nil and an error if they exceed the
-- limits of the rule.
local function set_value(it, row, offset, stamp, bytes, removed, forgotten)
  local rule, key = it.rule, row.key
  local old = redis.call('HSTRLEN', it.values, key)
  local was_removed = removed > 0 and redis.call('ZSCORE', it.removed, key)
  local live = redis.call('HLEN', it.values) - removed
  if old > 0 then
    bytes = bytes - #key - old + VALUE_PREFIX
    if not was_removed then live = live - 1 end
  end
  bytes = bytes + #key + #row.payload
  if not row.remove then
    local full = live + 1 > rule.keys and rule.keys .. ' keys' or bytes > rule.bytes and rule.bytes .. ' bytes'
    if full then return nil, redis.error_reply('LIVEBRIDGE_FULL ' .. full) end
  end
  redis.call('HSET', it.values, key, string.format('%016d%013d%d', offset, stamp, row.remove and 1 or 0) .. row.payload)
  redis.call('ZADD', it.order, offset, key)
  if row.remove then
    redis.call('ZADD', it.removed, offset, key)
    if not was_removed then removed = removed + 1 end
    if removed > MOST_REMOVED then
      local upto, freed = forget_removal(it)
      bytes, removed, forgotten = bytes - freed, removed - 1, upto
    end
  elseif was_removed then
    redis.call('ZREM', it.removed, key)
    removed = removed - 1
  end
  return bytes, removed, forgotten
end

-- Publishes position markers and payloads of the accepted rows, each payload as a message of its
-- own. Several payloads share one marker if all subscribers of markers support this. Before format
-- 2, livebridge needs a marker for each payload.
local function announce(it, rows, epoch, first, stamp)
  local count = #rows
  if count > 1 then
    local subscribers = not SHARDED and redis.pcall('PUBSUB', 'NUMSUB', it.note, it.run)
    if SHARDED or not subscribers.err and subscribers[2] == subscribers[4] then
      local lines = {string.format('%s %d %d %d', epoch, first, stamp, count)}
      if it.rule.keyed then
        for i, row in ipairs(rows) do
          lines[i + 1] = (row.remove and '1' or '0') .. (row.key and ' ' .. row.key or '')
        end
      end
      redis.call(PUBLISH, it.run, table.concat(lines, '\n'))
      for i = 1, count do redis.call(PUBLISH, it.name, rows[i].payload) end
      return
    end
  end
  for i = 1, count do
    local row = rows[i]
    redis.call(PUBLISH, it.note, string.format('%s %d %d ', epoch, first + i - 1, stamp)
      .. (row.remove and '1' or '0') .. (row.key and ' ' .. row.key or ''))
    redis.call(PUBLISH, it.name, row.payload)
  end
end

-- Renews the expiries, and drops expired messages. If the history has foreign elements, drops
-- everything but the elements that were just appended, because the rest is unreadable.
local function renew_and_expire(it, offset, stamp, length, appended)
  local rule = it.rule
  local first = offset - length / 2 + 1
  local oldest, foreign = oldest_kept(it, first, offset, stamp, stamp, -1)
  if foreign then redis.call('LTRIM', it.history, -appended, -1)
  elseif oldest > first and oldest <= offset then redis.call('LTRIM', it.history, 2 * (oldest - first), -1) end
  redis.call('PEXPIRE', it.history, rule.age + 1000)
  if rule.keyed then
    for _, key in ipairs({it.values, it.order, it.removed}) do redis.call('EXPIRE', key, RETAIN) end
  end
end

-- Completes an append: trims the history and writes the head. Renewing the expiries on every
-- message would cost 25 %. So renew once per second, with a TTL one second longer.
local function conclude(it, head, offset, stamp, stamp_before, length, appended, slack)
  if length % 2 == 1 or length > 2 * offset then error('UNREADABLE history') end
  local most = 2 * it.rule.messages
  if length > most + slack then
    redis.call('LTRIM', it.history, -most, -1)
    length = most
  end
  if stamp - stamp % 1000 > stamp_before then
    renew_and_expire(it, offset, stamp, length, appended)
    redis.call('SET', it.head, head, 'EX', RETAIN)
  else
    redis.call('SET', it.head, head, 'KEEPTTL')
  end
end

-- Returns the state of a channel before its first message. Converts data of an earlier format.
local function first_state(it, time)
  if not SHARDED and redis.call('EXISTS', it.base .. 'meta') == 1 and adopt(it) then return head_of(it) end
  local epoch = string.format('%.0f', microseconds(time))
  if redis.call('UNLINK', it.history, it.values, it.order, it.removed) > 0 then
    -- The head has disappeared before its expiry.
    record_loss(it)
  elseif not SHARDED then
    redis.call('SET', LIFE, epoch, 'NX')
  end
  return epoch, 0, 0, 0, ''
end

local function names_id(rows)
  for i = 1, #rows do
    if rows[i].id then return true end
  end
end

-- Appends rows, each a payload with an optional key, removal and id. Returns the answers of
-- livebridge_publish_many.
local function append(it, rows)
  local rule, time = it.rule, redis.call('TIME')
  if rule.keyed or names_id(rows) then stand_still(it) end
  local epoch, last, stamp_before, bytes, counts = head_of(it)
  if not epoch then epoch, last, stamp_before, bytes, counts = first_state(it, time) end
  local stamp = math.max(stamp_before, time[1] * 1000 + math.floor(time[2] / 1000))
  local key_bytes, removed, forgotten
  if rule.keyed then
    if redis.call('HLEN', it.values) ~= redis.call('ZCARD', it.order) then error('UNREADABLE values') end
    key_bytes, removed, forgotten = key_counts(counts)
  end
  local answers, accepted, offset, ids = {epoch}, {}, last, nil
  local command, size, small, previous = {'RPUSH', it.history}, 2, true, stamp_before
  for i = 1, #rows do
    local row = rows[i]
    local payload, id, answer = row.payload, row.id, row.refused
    if id and not answer then
      local twin = ids and ids[id]
      if not twin then answer = remembered(it, row, epoch, last)
      elseif twin.payload == payload and twin.key == row.key and twin.remove == row.remove then answer = twin.offset
      else answer = ID_REUSED end
    end
    if not answer and row.key then
      local new_bytes, new_removed, new_forgotten = set_value(it, row, offset + 1, stamp, key_bytes, removed, forgotten)
      if new_bytes then key_bytes, removed, forgotten = new_bytes, new_removed, new_forgotten else answer = new_removed end
    end
    if not answer then
      offset = offset + 1
      answer = offset
      local header = string.format('%s %d %d %d', epoch, offset - 1, previous, bytes)
      command[size + 1] = row.key and header .. (row.remove and ' 1 ' or ' 0 ') .. row.key or header
      command[size + 2], previous = payload, stamp
      size, bytes, small = size + 2, bytes + #payload, small and #payload < SMALL
      accepted[offset - last] = row
      if id then
        ids, row.offset = ids or {}, offset
        ids[id] = row
      end
    end
    answers[i + 1] = answer
  end
  if offset == last then return answers end
  -- Do not store messages that the limit would trim immediately.
  local beyond = offset - last - rule.messages
  if beyond > 0 then command = {'RPUSH', it.history, unpack(command, 3 + 2 * beyond)} end
  local length = redis.call(unpack(command))
  local head = string.format('%s %d %d %d', epoch, offset, stamp, bytes)
  if rule.keyed then head = head .. string.format(' %d %d %d', key_bytes, removed, forgotten) end
  conclude(it, head, offset, stamp, stamp_before, length, #command - 2, small and SLACK or 0)
  for id, row in pairs(ids or {}) do
    redis.call('SET', it.base .. 'id:' .. id, epoch .. string.format(':%d', row.offset), 'EX', REMEMBER)
  end
  announce(it, accepted, epoch, last + 1, stamp)
  return answers
end

-- Appends rows. If the stored state of the channel is unreadable, starts a new epoch.
local function append_safely(it, rows)
  local fine, answers = pcall(append, it, rows)
  if fine then return answers end
  local why = text_of(answers)
  if not (string.find(why, 'WRONGTYPE', 1, true) or string.find(why, 'UNREADABLE', 1, true)) then error(answers) end
  redis.log(redis.LOG_WARNING, 'livebridge: the stored data of the channel ' .. it.name .. ' is unreadable; starting a new epoch')
  reset(it)
  return append(it, rows)
end

-- Appends one message without an id to a channel without keys. The same as append, except that it
--   parses the head itself, and leaves a missing or unreadable one to append_safely;
--   has no loop, because there is one row, which is never refused, repeated or trimmed at once;
--   uses the old head as the header of the message, and never asks for run markers.
local function append_plain(it, payload)
  local head = redis.pcall('GET', it.head)
  local epoch, last, stamp_before, bytes
  if type(head) == 'string' then epoch, last, stamp_before, bytes = string.match(head, '^(%d+) (%d+) (%d+) (%d+)$') end
  if not epoch then return append_safely(it, {{payload = payload}}) end
  local time = redis.call('TIME')
  local offset, stamp = last + 1, time[1] * 1000 + math.floor(time[2] / 1000)
  stamp_before = tonumber(stamp_before)
  if stamp < stamp_before then stamp = stamp_before end
  local length = redis.pcall('RPUSH', it.history, head, payload)
  if type(length) ~= 'number' or length % 2 == 1 or length > 2 * offset then
    reset(it)
    return append(it, {{payload = payload}})
  end
  local mark = string.format('%s %d %d ', epoch, offset, stamp)
  conclude(it, string.format('%s%d', mark, bytes + #payload), offset, stamp, stamp_before, length, 2, #payload < SMALL and SLACK or 0)
  redis.call(PUBLISH, it.note, mark .. '0')
  redis.call(PUBLISH, it.name, payload)
  return {epoch, offset}
end

-- Returns why a row is not valid, or nil.
local function row_problem(row)
  if row.key and not is_key(row.key) then return invalid('a key must have 1 to 255 bytes of UTF-8 without control characters') end
  if row.id and not is_key(row.id) then return invalid('an id must have 1 to 255 bytes of UTF-8 without control characters') end
  if row.remove and not row.key then return invalid('remove needs the key to remove') end
end

-- Publishes a message of a channel without a history, unless its id is known.
local function relay(it, row)
  if not row.id or redis.call('SET', it.base .. 'id:' .. row.id, '-', 'NX', 'EX', REMEMBER) then
    redis.call(PUBLISH, it.name, row.payload)
  end
end

-- livebridge_publish 1 CHANNEL PAYLOAD [key KEY] [remove] [id ID]
-- Returns {EPOCH, OFFSET}, or {} if the channel keeps no history.
local function publish(keys, args)
  local payload = args[1]
  if not keys[1] or not payload then
    return redis.error_reply('LIVEBRIDGE_INVALID usage: FCALL livebridge_publish 1 CHANNEL PAYLOAD [key KEY] [remove] [id ID]')
  end
  local it, problem = channel_of_call(keys)
  if not it then return redis.error_reply(problem) end
  local count = #args
  if count == 1 and it.rule.messages and not it.rule.keyed then return append_plain(it, payload) end
  local row, i = {payload = payload}, 2
  while i <= count do
    local word = string.lower(args[i])
    if word == 'remove' then row.remove = true
    elseif (word == 'key' or word == 'id') and args[i + 1] then row[word] = args[i + 1]; i = i + 1
    else return redis.error_reply(invalid('unknown option ' .. string.sub(args[i], 1, 80) .. '; known: key KEY, remove, id ID')) end
    i = i + 1
  end
  problem = row_problem(row)
  if problem then return redis.error_reply(problem) end
  if row.key and not it.rule.keyed then return NOT_KEYED end
  if not it.rule.messages then
    relay(it, row)
    return {}
  end
  local answers = append_safely(it, {row})
  local answer = answers[2]
  if type(answer) == 'table' then return answer end
  if type(answer) == 'string' then
    local epoch, offset = string.match(answer, '^(%d+):(%d+)$')
    return {epoch, tonumber(offset)}
  end
  return answers
end

local COLUMNS = {payload = true, key = true, remove = true, id = true}

-- Returns the rows of livebridge_publish_many; nil and an error text if they are not valid.
local function rows_of(it, args)
  local columns = {}
  for column in string.gmatch(args[1], '[^,]+') do
    if not COLUMNS[column] then return nil, invalid('unknown column ' .. string.sub(column, 1, 80) .. '; known: payload, key, remove, id') end
    columns[#columns + 1] = column
  end
  local width, rows = #columns, {}
  if columns[1] ~= 'payload' then return nil, invalid('the first column must be payload') end
  if (#args - 1) % width ~= 0 then return nil, invalid('the last message lacks a column of ' .. args[1]) end
  local count = (#args - 1) / width
  if count > MOST_ROWS then return nil, invalid('one call takes at most ' .. MOST_ROWS .. ' messages') end
  for r = 0, count - 1 do
    local row = {}
    for c = 1, width do
      local value = args[1 + r * width + c]
      if columns[c] == 'payload' or value ~= '' then row[columns[c]] = value end
    end
    if row.remove and row.remove ~= '1' then return nil, invalid('remove must be 1 or empty') end
    local problem = width > 1 and row_problem(row)
    if problem then return nil, problem end
    if row.key and not it.rule.keyed then
      if not it.rule.messages then return nil, NOT_KEYED.err end
      -- The other rows may come from another client, so refuse only this one.
      row.refused = NOT_KEYED
    end
    rows[r + 1] = row
  end
  return rows
end

-- livebridge_publish_many 1 CHANNEL COLUMNS VALUE...
-- COLUMNS is 'payload' or a longer list, such as 'payload,key,remove,id'. The values follow,
-- message by message; an empty value means that the message lacks this column.
-- Returns {EPOCH, ANSWER, ...} with one answer per message: its offset; 'EPOCH:OFFSET' if its id is
-- known from another epoch; or an error, which does not affect the others. Returns {} without a
-- history.
local function publish_many(keys, args)
  if not keys[1] or not args[1] then
    return redis.error_reply('LIVEBRIDGE_INVALID usage: FCALL livebridge_publish_many 1 CHANNEL payload[,key][,remove][,id] VALUE...')
  end
  local it, problem = channel_of_call(keys)
  local rows
  if it then rows, problem = rows_of(it, args) end
  if not rows then return redis.error_reply(problem) end
  if not it.rule.messages then
    if names_id(rows) then stand_still(it) end
    for i = 1, #rows do relay(it, rows[i]) end
    return {}
  end
  if #rows == 0 then return {} end
  return append_safely(it, rows)
end
