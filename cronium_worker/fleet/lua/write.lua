-- ARGV: token, write, n, then n pairs of (kind, body), then fields and values of the record.
-- Returns 'lost', 'cancel' when a cancel was asked for, else 'ok'.
local outcome = fence(ARGV[1], ARGV[2])
if outcome == 'lost' then
  return outcome
end
if outcome == 'ok' then
  local after = 4 + 2 * tonumber(ARGV[3])
  for i = 4, after - 2, 2 do
    emit(ARGV[i], ARGV[i + 1])
  end
  if after <= #ARGV then
    redis.call('HSET', record, unpack(ARGV, after))
  end
end
return redis.call('HGET', record, 'cancel') and 'cancel' or 'ok'
