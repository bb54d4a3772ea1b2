-- ARGV: token, write, status, finished_at, seconds to live, the name of a large result's key or '', the record's result
-- as JSON, then the body of the terminal event in pieces.
-- Returns 'ok', 'done' or 'lost'.
local outcome = fence(ARGV[1], ARGV[2])
if outcome == 'ok' then
  finish(ARGV[3], ARGV[7], ARGV[4], ARGV[5], unpack(ARGV, 8))
  if ARGV[6] ~= '' then
    redis.call('HSET', record, 'whole_result', ARGV[6])
    redis.call('EXPIRE', record .. ':result:' .. ARGV[6], ARGV[5])
  end
end
return outcome
