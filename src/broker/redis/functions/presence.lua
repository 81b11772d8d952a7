-- Who is on a channel. Read channel.lua first. Entry points: presence_write and presence_read.
--
--   livebridge:{CHANNEL}:presence  hash: instance -> record, which is a text of lines:
--     UNTIL VERSION CLIENTS USERS  until when it holds (in milliseconds), a number that changes with
--                                  the record, and how many clients and users there are
--     LEAVES USER ID INFO          for each listed client: when it counts as gone, if its connection
--                                  has ended, else 0; the user, percent-encoded, or - for none; its
--                                  id; JSON, or nothing

-- How long the hash is kept after the last write, in milliseconds.
local PRESENCE_KEPT = 60000

-- Returns the channel of a call, as channel_of does.
local function presence_channel(keys)
  local name = #keys == 1 and string.match(keys[1], '^livebridge:{(.*)}:presence$')
  if not name then return nil, invalid('the key must be livebridge:{CHANNEL}:presence') end
  return channel_of(name)
end

-- Returns a record that still holds, with its lines as one text; nothing if it does not.
local function presence_record(value, now)
  local holds, version, clients, users, lines = string.match(value, '^(%d+) (%d+) (%d+) (%d+)\n(.*)$')
  if holds and tonumber(holds) > now then
    return {holds = holds, version = version, clients = tonumber(clients), users = users, lines = lines}
  end
end

local function presence_text(record)
  return table.concat({record.holds, record.version, math.max(record.clients, 0), record.users}, ' ') .. '\n' .. record.lines
end

-- Returns the records of all instances that still hold, and the names of the others.
local function presence_records(key, now)
  local all, records, gone = redis.pcall('HGETALL', key), {}, {}
  if all.err then return nil end
  for i = 1, #all, 2 do
    local record = presence_record(all[i + 1], now)
    if record then records[all[i]] = record else gone[#gone + 1] = all[i] end
  end
  return records, gone
end

-- Returns the ids of the clients that a record lists, as keys.
local function presence_ids(record)
  local ids = {}
  for id in string.gmatch(record and record.lines or '', '%d+ %S+ (%S+) [^\n]*\n') do ids[id] = true end
  return ids
end

-- Looks for a client of this user whose connection to another instance has ended, and removes it
-- there. Returns its id.
local function presence_take_over(records, instance, user, now)
  for other, record in pairs(records) do
    if other ~= instance and string.find(record.lines, ' ' .. user .. ' ', 1, true) then
      for line, leaves, whose, id in string.gmatch(record.lines, '((%d+) (%S+) (%S+) [^\n]*\n)') do
        if whose == user and tonumber(leaves) > now then
          local at, to = string.find('\n' .. record.lines, '\n' .. line, 1, true)
          record.lines = string.sub(record.lines, 1, at - 1) .. string.sub(record.lines, to)
          record.clients, record.changed = record.clients - 1, true
          return id
        end
      end
    end
  end
end

-- Whether another instance lists a client with this id.
local function presence_is_elsewhere(records, instance, id)
  for other, record in pairs(records) do
    if other ~= instance and string.find(record.lines, ' ' .. id .. ' ', 1, true) and presence_ids(record)[id] then
      return true
    end
  end
end

-- Compares the lines of a new record with the one before. Returns the new record, who has taken
-- over the place of whom, and the lines that tell who has come and gone.
local function presence_compare(records, instance, stamp, now, holds, version, clients, users, args)
  local before = presence_ids(records[instance])
  local lines, taken, news = {}, {}, {}
  for i = 8, #args do
    local leaves, user, id, info = string.match(args[i], '^(%d+) (%S+) (%S+) ([^\n]*)$')
    local is_new = id and not before[id]
    if is_new and leaves ~= '0' then
      -- Another client has taken its place, or it came and went between two records.
      clients = clients - 1
    elseif id then
      local former = is_new and user ~= '-' and presence_take_over(records, instance, user, now)
      if former then
        taken[#taken + 1], taken[#taken + 2] = id, former
        id = former
      elseif is_new then
        if presence_is_elsewhere(records, instance, id) then
          -- The instance has given a place to another connection of the user, and did not know that it had
          -- been taken over elsewhere. Nobody else has this id.
          local unique = string.sub(redis.sha1hex(id .. ' ' .. instance .. ' ' .. stamp), 1, 32)
          taken[#taken + 1], taken[#taken + 2] = id, unique
          id = unique
        end
        news[#news + 1] = '+' .. user .. ' ' .. id .. ' ' .. info
      end
      before[id] = nil
      if leaves ~= '0' then leaves = string.format('%.0f', now + leaves) end
      lines[#lines + 1] = leaves .. ' ' .. user .. ' ' .. id .. ' ' .. info .. '\n'
    end
  end
  for id in pairs(before) do news[#news + 1] = '-' .. id end
  return {holds = holds, version = version, clients = clients, users = users, lines = table.concat(lines), changed = true}, taken, news
end

-- Returns the records as texts, that of the instance last.
local function presence_texts(records, instance)
  local texts = {}
  for other, record in pairs(records) do
    if other ~= instance then texts[#texts + 1] = presence_text(record) end
  end
  texts[#texts + 1] = records[instance] and presence_text(records[instance]) or ''
  return texts
end

-- livebridge_presence_write 1 livebridge:{CHANNEL}:presence INSTANCE HOLDS VERSION ALL RECHECK
--   [CLIENTS USERS LINE...]
-- Stores the record of an instance, which holds for so many milliseconds; without CLIENTS, renews
-- the one of this version. Publishes who has come and gone, and after how many milliseconds to look
-- again, if RECHECK is not 0. Returns {STAMP, OUTDATED, TAKEN, RECORDS}: the time in microseconds;
-- whether there is no record of this version to renew; for each client that has taken over a place, or
-- whose place has been taken over, its id and the one that it has from now on; and, if ALL is 1, the
-- records of all instances.
local function presence_write(keys, args)
  local it, problem = presence_channel(keys)
  if not it then return redis.error_reply(problem) end
  local instance, version, recheck = args[1], args[3], args[5]
  if not (recheck and tonumber(args[2]) and tonumber(version) and (not args[6] or tonumber(args[6]) and tonumber(args[7]))) then
    return redis.error_reply(invalid('usage: livebridge_presence_write 1 KEY INSTANCE HOLDS VERSION ALL RECHECK [CLIENTS USERS LINE...]'))
  end
  local key, time = keys[1], redis.call('TIME')
  local stamp, now = string.format('%.0f', microseconds(time)), time[1] * 1000 + math.floor(time[2] / 1000)
  local holds = string.format('%.0f', now + args[2])
  local records, gone = presence_records(key, now)
  if not records then
    redis.call('UNLINK', key)
    records, gone = {}, {}
  end
  local own, taken, news, outdated = records[instance], {}, {}, 0
  if args[6] then
    own, taken, news = presence_compare(records, instance, stamp, now, holds, version, tonumber(args[6]), args[7], args)
    records[instance] = own.clients > 0 and own or nil
    if own.clients <= 0 then gone[#gone + 1] = instance end
  elseif own and own.version == version then own.holds, own.changed = holds, true
  else outdated = 1 end
  for _, other in ipairs(gone) do redis.call('HDEL', key, other) end
  for other, record in pairs(records) do
    if record.changed then redis.call('HSET', key, other, presence_text(record)) end
  end
  redis.call('PEXPIRE', key, PRESENCE_KEPT)
  if #news > 0 or recheck ~= '0' then
    redis.call(PUBLISH, it.run, 'presence ' .. stamp .. ' ' .. recheck .. '\n' .. table.concat(news, '\n'))
  end
  return {stamp, outdated, taken, args[4] == '1' and presence_texts(records, instance) or {}}
end

-- livebridge_presence_read 1 livebridge:{CHANNEL}:presence
-- Returns the time in microseconds and the record of each instance.
local function presence_read(keys)
  local it, problem = presence_channel(keys)
  if not it then return redis.error_reply(problem) end
  local time = redis.call('TIME')
  local records = presence_records(keys[1], time[1] * 1000 + math.floor(time[2] / 1000)) or {}
  local texts = presence_texts(records)
  return {string.format('%.0f', microseconds(time)), texts}
end
