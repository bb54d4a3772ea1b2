-- ARGV: token, bytes that earlier attempts' events may take, bytes of an event beside its body, body of the marker open
-- at its end, how many entries to look at; then where the last call has ended: id of an entry ('-' in the first call),
-- seq and attempt of the last event that was removed.
-- Removes what is not a status event, oldest first, until the rest fits. In the end a `progress` event says so.
-- Returns {'more' or 'ok', bytes that are left, id, seq, attempt}, or {'lost', ''}.
local owner, stored = unpack(redis.call('HMGET', record, 'token', 'stored'))
if owner ~= ARGV[1] then
  return { 'lost', '' }
end
stored = tonumber(stored or 0)
local keep, beside, from, seq, attempt = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[6], ARGV[7], ARGV[8]
local entries = redis.call('XRANGE', events, from, '+', 'COUNT', ARGV[5])
local ids = {}
for _, entry in ipairs(entries) do
  local event = entry[2][2]
  if stored <= keep then
    break
  end
  from = '(' .. entry[1]
  -- The type stands near the beginning, and in a string of the event's every quote has a backslash before it.
  if string.find(string.sub(event, 1, 300), '"type":"status"', 1, true) then
    attempt = string.match(event, '"attempt":(%d+)') or attempt
  else
    table.insert(ids, entry[1])
    local _, head, number = string.find(event, '"seq":(%d+),')
    seq = number
    stored = stored - (#event - head) - beside
  end
end
stored = math.max(0, stored)
redis.call('HSET', record, 'stored', stored)
if #ids > 0 then
  redis.call('XDEL', events, unpack(ids))
  redis.call('HSET', record, 'cut_seq', seq)
end
local more = stored > keep and #entries == tonumber(ARGV[5])
if not more and seq ~= '' then
  emit('progress', ARGV[4] .. ',"attempt":' .. attempt .. ',"to_seq":' .. seq .. '}')
end
return { more and 'more' or 'ok', tostring(stored), from, seq, attempt }
