-- ARGV: token, write, seq of the first event, n, then n pairs of (kind, event), then fields and values of the record.
-- The events come whole: of each string of a script's, Lua looks at every byte, and a log's are long.
-- Returns 'lost', the next seq when it is another, 'cancel' when a cancel was asked for, else 'ok'.
local outcome = fence(ARGV[1], ARGV[2], ARGV[3])
if outcome == 'ok' then
  redis.call('HINCRBY', record, 'seq', ARGV[4])
  local after = 5 + 2 * ARGV[4]
  for i = 5, after - 2, 2 do
    append(ARGV[i], ARGV[i + 1])
  end
  if after <= #ARGV then
    redis.call('HSET', record, unpack(ARGV, after))
  end
elseif outcome ~= 'done' then
  return outcome
end
return redis.call('HGET', record, 'cancel') and 'cancel' or 'ok'
