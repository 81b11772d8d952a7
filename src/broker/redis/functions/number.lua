-- The numbering of plain messages (decision 018). Read channel.lua and publish.lua first. Entry points: member
-- and number. Not on a Cluster.
--
--   livebridge:{PREFIX}:members    hash: barrier (the highest number given out), clock, last (milliseconds of
--                                  the clock below, and of Redis' clock at the last call); and for each member
--                                  its number -> when it expires, by the clock below
--   livebridge:{CHANNEL}:numbered  string: BARRIER INDEX of the place up to which plain messages are appended

local MEMBERS = 'livebridge:{' .. PREFIX .. '}:members'
-- All members are subscribed to this channel.
local NUMBERED = 'livebridge:numbered:' .. PREFIX
-- How long a member stays without being renewed, in milliseconds. Time in which nobody renews counts only up
-- to MOST_STEP, so that no member expires because Redis or the network stood still.
local EXPIRES_AFTER, MOST_STEP = 1500, 600
local MOST_MEMBERS = 10000

-- Returns the members, oldest first, and their expiries; then the clock and the highest barrier.
local function members_of(time)
  local found = redis.call('HGETALL', MEMBERS)
  local own, members, expiries = {}, {}, {}
  for i = 1, #found, 2 do
    local number, value = tonumber(found[i]), tonumber(found[i + 1]) or 0
    if number then
      members[#members + 1] = number
      expiries[number] = value
    else
      own[found[i]] = value
    end
  end
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  local step = math.max(0, math.min(now - (own.last or now), MOST_STEP))
  local clock = (own.clock or 0) + step
  redis.call('HSET', MEMBERS, 'clock', string.format('%.0f', clock), 'last', string.format('%.0f', now))
  table.sort(members)
  return members, expiries, clock, own.barrier or 0
end

local function set_member(number, expiry)
  redis.call('HSET', MEMBERS, string.format('%.0f', number), string.format('%.0f', expiry))
end

-- livebridge_member 1 livebridge:{PREFIX}:members join WORD HIGHEST
-- livebridge_member 1 livebridge:{PREFIX}:members renew|remove NUMBER...
-- livebridge_member 1 livebridge:{PREFIX}:members barrier WORD HIGHEST
-- Changes the table of members, removes those that have expired, and tells all members:
--   m BARRIER WORD MEMBER...       BARRIER is 0 if this message is no barrier
-- `join` and `barrier` make it a barrier, with a number above HIGHEST; `join` adds it as a member.
local function member(keys, args)
  local operation = args[1]
  if SHARDED or keys[1] ~= MEMBERS or not args[2] then
    return redis.error_reply(invalid('usage: FCALL livebridge_member 1 ' .. MEMBERS .. ' join|renew|remove|barrier ..., not on a Cluster'))
  end
  local time = redis.call('TIME')
  local members, expiries, clock, highest = members_of(time)
  local barrier, word = 0, 0
  if operation == 'renew' or operation == 'remove' then
    for i = 2, #args do
      local number = tonumber(args[i])
      if not number then return redis.error_reply(invalid('a member is a number')) end
      if operation == 'remove' then
        redis.call('HDEL', MEMBERS, args[i])
        expiries[number] = nil
      elseif #members < MOST_MEMBERS then
        if not expiries[number] then members[#members + 1] = number end
        expiries[number] = clock + EXPIRES_AFTER
        set_member(number, expiries[number])
      end
    end
  elseif operation == 'join' or operation == 'barrier' then
    word = args[2]
    barrier = math.max(highest + 1, microseconds(time), (tonumber(args[3]) or 0) + 1)
    redis.call('HSET', MEMBERS, 'barrier', string.format('%.0f', barrier))
    if operation == 'join' then
      members[#members + 1], expiries[barrier] = barrier, clock + EXPIRES_AFTER
      set_member(barrier, expiries[barrier])
    end
  else
    return redis.error_reply(invalid('unknown operation ' .. string.sub(operation, 1, 80)))
  end
  table.sort(members)
  local words = {'m', string.format('%.0f', barrier), word}
  for _, number in ipairs(members) do
    if expiries[number] and expiries[number] > clock then
      words[#words + 1] = string.format('%.0f', number)
    elseif expiries[number] then
      redis.call('HDEL', MEMBERS, string.format('%.0f', number))
    end
  end
  redis.call('EXPIRE', MEMBERS, RETAIN)
  redis.call('PUBLISH', NUMBERED, table.concat(words, ' '))
  return {}
end

-- Whether a member is older than this one, so that it may have received messages that this one has not.
local function has_older(since)
  local found = redis.call('HGETALL', MEMBERS)
  for i = 1, #found, 2 do
    local number = tonumber(found[i])
    if number and number < since then return true end
  end
  return false
end

-- Appends the arguments from an index on to the history. Returns the epoch, the offset of the first, and the
-- stamp.
local function append_payloads(it, args, from)
  local time = redis.call('TIME')
  local epoch, last, stamp_before, bytes = head_of(it)
  if not epoch then epoch, last, stamp_before, bytes = first_state(it, time) end
  local stamp = math.max(stamp_before, time[1] * 1000 + math.floor(time[2] / 1000))
  local command, size, small, previous = {'RPUSH', it.history}, 2, true, stamp_before
  local count = #args - from + 1
  local skipped = count - it.rule.messages
  for i = 1, count do
    local payload = args[from + i - 1]
    -- Do not store messages that the limit would trim immediately.
    if i > skipped then
      command[size + 1] = string.format('%s %d %d %d', epoch, last + i - 1, previous, bytes)
      command[size + 2] = payload
      size = size + 2
    end
    previous, bytes, small = stamp, bytes + #payload, small and #payload < SMALL
  end
  local offset = last + count
  local length = redis.call(unpack(command))
  local head = string.format('%s %d %d %d', epoch, offset, stamp, bytes)
  conclude(it, head, offset, stamp, stamp_before, length, size - 2, small and SLACK or 0)
  return epoch, last + 1, stamp
end

-- livebridge_number 1 CHANNEL SINCE BARRIER INDEX PAYLOAD...
-- Says: since the barrier SINCE, all plain messages of the channel before the place BARRIER INDEX have been
-- appended, and the plain messages from this place on are these. Appends those that have not been appended, and
-- tells all members, in the same step:
--   n CHANNEL EPOCH OFFSET STAMP BARRIER INDEX COUNT BYTES
-- Returns the place up to which the messages of the channel are appended; {} if an older member may have
-- messages that come before these.
local function number(keys, args)
  local since, barrier, index = tonumber(args[1]), tonumber(args[2]), tonumber(args[3])
  local count = #args - 3
  if not (keys[1] and since and barrier and index) or count < 1 or count > MOST_ROWS then
    return redis.error_reply(invalid('usage: FCALL livebridge_number 1 CHANNEL SINCE BARRIER INDEX PAYLOAD...'))
  end
  local it, problem = channel_of_call(keys)
  if not it then return redis.error_reply(problem) end
  if SHARDED or it.rule.keyed or not it.rule.messages then
    return redis.error_reply(invalid('plain messages have no positions on a Cluster, on keyed channels and without a history'))
  end
  local known = redis.pcall('GET', it.base .. 'numbered')
  local at_barrier, at_index = string.match(type(known) == 'string' and known or '', '^(%d+) (%d+)$')
  at_barrier, at_index = tonumber(at_barrier or 0), tonumber(at_index or 0)
  if at_barrier > barrier or (at_barrier == barrier and at_index >= index + count) then 
    return {string.format('%.0f', at_barrier), at_index}
  end
  -- There may be messages behind the known place that this member has not received.
  if at_barrier < since and has_older(since) then return {} end
  local skip = at_barrier == barrier and math.max(0, at_index - index) or 0
  local from = 4 + skip
  local fine, epoch, offset, stamp = pcall(append_payloads, it, args, from)
  if not fine then
    local why = text_of(epoch)
    if not (string.find(why, 'WRONGTYPE', 1, true) or string.find(why, 'UNREADABLE', 1, true)) then error(epoch) end
    redis.log(redis.LOG_WARNING, 'livebridge: the stored data of the channel ' .. it.name .. ' is unreadable; starting a new epoch')
    reset(it)
    epoch, offset, stamp = append_payloads(it, args, from)
  end
  local bytes = 0
  for i = from, #args do bytes = bytes + #args[i] end
  redis.call('SET', it.base .. 'numbered', string.format('%.0f %d', barrier, index + count), 'EX', RETAIN)
  redis.call('PUBLISH', NUMBERED, string.format('n %s %s %d %d %.0f %d %d %d', it.name, epoch, offset, stamp, barrier, index + skip, count - skip, bytes))
  return {string.format('%.0f', barrier), index + count}
end
