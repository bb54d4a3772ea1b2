-- ARGV: token, write, status, result JSON, finished_at, body of the terminal event, seconds to live.
-- Returns 'ok', 'done' or 'lost'.
local outcome = fence(ARGV[1], ARGV[2])
if outcome == 'ok' then
  finish(unpack(ARGV, 3))
end
return outcome
