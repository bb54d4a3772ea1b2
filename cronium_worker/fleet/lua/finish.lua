-- ARGV: token, write, status, finished_at, seconds to live, n, then the result's JSON in n pieces, then the body of the
-- terminal event in pieces.
-- Returns 'ok', 'done' or 'lost'.
local outcome = fence(ARGV[1], ARGV[2])
if outcome == 'ok' then
  local last = 6 + ARGV[6]
  finish(ARGV[3], table.concat(ARGV, '', 7, last), ARGV[4], table.concat(ARGV, '', last + 1), ARGV[5])
end
return outcome
