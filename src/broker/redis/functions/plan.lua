-- Reading: returns which elements answer a read, and the reader then fetches them with a plain
-- command. These functions read no payloads and write nothing. Their cost does not depend on the
-- number or size of the stored messages.

-- How many unreadable messages to skip in search of a readable one.
local MOST_SKIPPED = 64

-- Whether a channel that was empty at `from` certainly received no messages until `to` (in
-- microseconds): no messages from this time can have expired yet, and Redis has lost no data.
local function was_empty_until(it, from, to)
  local life = redis.pcall('GET', LIFE)
  if type(life) ~= 'string' then return false end
  local since = tonumber(life)
  local lost = SHARDED and redis.pcall('GET', it.base .. 'lost')
  if lost and (lost.err or tonumber(lost) >= from) then return false end
  return since ~= nil and since <= from and to >= from and to - from < RETAIN * 1000000
end

-- Whether the history has diverged from what an instance has delivered.
local function diverged(it, first, tail, tail_stamp, offset, stamp)
  if offset > tail then return true end
  if stamp == 0 or offset < first then return false end
  local stored = stamp_at(it, offset, first, tail, tail_stamp)
  return stored ~= nil and stored ~= stamp
end

-- Returns the last offset of a page that starts at `from`, within the limits on count and bytes. A
-- page has at least one message.
local function last_of_page(it, tail, first, from, count, bytes, before, total)
  local last = math.min(tail, from + count - 1)
  local function size_through(offset)
    if offset == tail then return total - before end
    local _, _, upto = header_at(it, offset + 1, first)
    return upto and upto - before
  end
  local size = size_through(last)
  if not size then return end
  if size <= bytes then return last end
  local low, high = from, last - 1
  while low < high do
    local middle = math.ceil((low + high) / 2)
    size = size_through(middle)
    if not size then return end
    if size <= bytes then low = middle else high = middle - 1 end
  end
  return low
end

-- Returns the next readable offset; the offset after the tail if none of the next few is readable.
local function next_readable(it, first, tail, tail_stamp, from)
  for offset = from, math.min(from + MOST_SKIPPED, tail) do
    if header_at(it, offset, first) and stamp_at(it, offset, first, tail, tail_stamp) then return offset end
  end
  return tail + 1
end

-- Adds the list elements from an offset on to a plan.
local function plan_list(plan, it, first, tail, tail_stamp, from, count, bytes, total)
  if from > tail or count < 1 then return plan end
  local first_header, _, before = header_at(it, from, first)
  local last = first_header and last_of_page(it, tail, first, from, count, bytes, before, total)
  local last_header = last and header_at(it, last, first)
  local stamp = last_header and stamp_at(it, last, first, tail, tail_stamp)
  if not stamp then
    -- Foreign elements: first return the messages before them, and skip them in the next plan.
    last = next_readable(it, first, tail, tail_stamp, from)
    if last > from then
      if plan[4] == '' then plan[4] = 'history_trimmed' end
      plan[5] = string.format('%d', last - 1)
    end
    if last > tail then return plan end
    from, first_header = last, header_at(it, last, first)
    last_header, stamp = first_header, stamp_at(it, last, first, tail, tail_stamp)
  end
  if last < tail then plan[6], plan[7] = string.format('%d', last), string.format('%d', stamp) end
  plan[8] = 'list'
  plan[9], plan[10] = 2 * (from - first), 2 * (last - first) + 1
  plan[11], plan[12] = first_header, last_header
  return plan
end

-- Adds the keys that changed after an offset to a plan, oldest change first.
local function plan_keys(plan, it, tail, after, count, bytes)
  local found = redis.call('ZRANGEBYSCORE', it.order, string.format('(%d', after), '+inf', 'WITHSCORES', 'LIMIT', 0, count)
  local size, through = 0, nil
  plan[8] = 'keys'
  for i = 1, #found, 2 do
    local length = redis.call('HSTRLEN', it.values, found[i])
    if length < VALUE_PREFIX then error('UNREADABLE values') end
    size = size + length
    if through and size > bytes then break end
    plan[#plan + 1], plan[#plan + 2] = found[i + 1], found[i]
    through = tonumber(found[i + 1])
  end
  if through and through < tail and (#plan - 8 < #found or #found == 2 * count) then
    plan[6], plan[7] = string.format('%d', through), '0'
  end
  return plan
end

-- Returns a plan without messages, for a reader that has them all.
local function plan_nothing(epoch, tail, tail_stamp)
  local offset, stamp = string.format('%d', tail), string.format('%d', tail_stamp)
  return {epoch, offset, stamp, '', '0', offset, stamp, ''}
end

-- Returns a plan for a channel without messages.
local function plan_empty(it, now, mode, their_epoch, offset)
  local epoch, reason = string.format('%.0f', now), ''
  if mode == 'after' or mode == 'delivered' then
    if offset == 0 and was_empty_until(it, tonumber(their_epoch), now) then epoch = their_epoch else reason = 'epoch_changed' end
  end
  return {epoch, '0', '0', reason, '0', '0', '0', ''}
end

-- Returns a plan for a channel with unreadable data. A repeated read gets the same plan, so that
-- readers do not get one gap after another.
local function plan_unreadable(it, now, mode, their_epoch, offset)
  local fine, epoch, tail, tail_stamp = pcall(head_of, it)
  if not (fine and epoch) then return plan_empty(it, now, mode, their_epoch, offset) end
  local plan = plan_nothing(epoch, tail, tail_stamp)
  plan[5] = plan[2]
  if mode == 'after' or mode == 'delivered' then
    if their_epoch ~= epoch then plan[4] = 'epoch_changed' elseif offset ~= tail then plan[4] = 'history_trimmed' end
  end
  return plan
end

local function plan_read(it, args, now)
  local count, bytes, mode = tonumber(args[1]), tonumber(args[2]), args[3]
  local their_epoch, offset, stamp = args[4], tonumber(args[5]), tonumber(args[6] or 0)
  local epoch, tail, tail_stamp, total, counts = head_of(it)
  if not epoch then return plan_empty(it, now, mode, their_epoch, offset) end
  local plan = plan_nothing(epoch, tail, tail_stamp)
  if mode == 'tail' then return plan end
  if mode == 'keys' then
    local _, _, forgotten = key_counts(counts)
    plan[5] = string.format('%d', forgotten)
    return plan_keys(plan, it, tail, offset or 0, count, bytes)
  end
  local first, milliseconds = tail - messages_kept(it) + 1, math.floor(now / 1000)
  if mode == 'oldest' or mode == 'last' then
    local from = oldest_kept(it, first, tail, tail_stamp, milliseconds, -1)
    if mode == 'last' then from = math.max(from, tail + 1 - count) end
    return plan_list(plan, it, first, tail, tail_stamp, from, count, bytes, total)
  end
  if their_epoch ~= epoch and offset == 0 and was_empty_until(it, tonumber(their_epoch), tonumber(epoch)) then
    their_epoch, stamp = epoch, 0
  end
  if mode == 'delivered' and their_epoch == epoch and diverged(it, first, tail, tail_stamp, offset, stamp) then return {'diverged'} end
  local reason = ''
  if their_epoch ~= epoch or offset > tail then
    reason = 'epoch_changed'
  elseif offset == tail then
    return plan
  else
    local from = offset + 1
    local at = nil
    if from >= math.max(first, tail + 1 - it.rule.messages) then at = stamp_at(it, from, first, tail, tail_stamp) end
    if at and at >= milliseconds - it.rule.age then
      plan_list(plan, it, first, tail, tail_stamp, from, count, bytes, total)
      if plan[4] == '' or not it.rule.keyed then return plan end
      -- Return the values of the keys in place of unreadable messages.
      plan = plan_nothing(epoch, tail, tail_stamp)
    end
    reason = 'history_trimmed'
  end
  if it.rule.keyed then
    local _, _, forgotten = key_counts(counts)
    if reason == 'history_trimmed' and offset >= forgotten then
      plan[5] = string.format('%d', forgotten)
      return plan_keys(plan, it, tail, offset, count, bytes)
    end
    plan[4], plan[5] = reason, string.format('%d', forgotten)
    return plan_keys(plan, it, tail, 0, count, bytes)
  end
  -- The instance may already have delivered some messages of the other epoch; their stamps show
  -- which.
  local newer_than = reason == 'epoch_changed' and mode == 'delivered' and stamp or -1
  local from = oldest_kept(it, first, tail, tail_stamp, milliseconds, newer_than)
  -- Unreadable messages are no reason to return earlier ones again.
  if reason == 'history_trimmed' and from <= offset then from = next_readable(it, first, tail, tail_stamp, offset + 1) end
  plan[4], plan[5] = reason, string.format('%d', from - 1)
  return plan_list(plan, it, first, tail, tail_stamp, from, count, bytes, total)
end

-- livebridge_plan 1 CHANNEL COUNT BYTES MODE [EPOCH OFFSET [STAMP]]
-- If SHARDED, the key with the life of the slot is the last argument.
-- MODE is tail, oldest, last, after, delivered, or keys, where OFFSET is the one to continue after.
-- Returns {} if the channel keeps no history; {'adopt'} if an earlier format stored it;
-- {'diverged'} if the history has diverged from what the instance delivered; otherwise
--   {epoch, tail offset, tail stamp, gap reason or '', gap offset, through offset, through stamp,
--    KIND, ...}
-- KIND is '' if there are no messages; 'list', followed by the first and last index and the first
-- and last header; or 'keys', followed by offset and key of each. With 'keys', the gap offset is
-- FORGOTTEN.
local function plan(keys, args)
  local it, problem = channel_of_call(keys)
  if not it then return redis.error_reply(problem) end
  if not it.rule.messages then return {} end
  if SHARDED then LIFE = table.remove(args) end
  local now = microseconds(redis.call('TIME'))
  local fine, answer = pcall(plan_read, it, args, now)
  if fine and answer[2] == '0' and not SHARDED and redis.call('EXISTS', it.base .. 'meta') == 1 then return {'adopt'} end
  if fine then return answer end
  local why = text_of(answer)
  if not (string.find(why, 'WRONGTYPE', 1, true) or string.find(why, 'UNREADABLE', 1, true)) then error(answer) end
  -- Treat unreadable data as absent. The next publish starts a new epoch.
  return plan_unreadable(it, now, args[3], args[4], tonumber(args[5]))
end

-- livebridge_renew 1 CHANNEL EPOCH OFFSET STAMP
-- Starts a new epoch if the history has diverged from what an instance has delivered, so that
-- clients do not take later messages for its continuation. Changes one field, so a full Redis
-- allows it.
local function renew(keys, args)
  local it = channel_of_call(keys)
  if not it then return {} end
  local epoch, tail, tail_stamp = head_of(it)
  local first = tail and tail - messages_kept(it) + 1
  if epoch == args[1] and diverged(it, first, tail, tail_stamp, tonumber(args[2]), tonumber(args[3])) then
    local new = string.format('%.0f', math.max(microseconds(redis.call('TIME')), epoch + 1))
    redis.call('SET', it.head, new .. string.sub(redis.call('GET', it.head), #epoch + 1), 'KEEPTTL')
  end
  return {}
end

-- livebridge_life 1 livebridge:life[:{TAG}] [renew]
-- Records that this data set is complete from now on, unless a time is already recorded. With
-- `renew`, replaces the time, because stored messages have been lost.
local function life(keys, args)
  local key = keys[1]
  if not key or string.sub(key, 1, 15) ~= 'livebridge:life' then
    return redis.error_reply(invalid('usage: FCALL livebridge_life 1 livebridge:life'))
  end
  local now = string.format('%.0f', microseconds(redis.call('TIME')))
  if args[1] == 'renew' then redis.call('SET', key, now) else redis.call('SET', key, now, 'NX') end
  return {}
end
