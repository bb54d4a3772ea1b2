-- ARGV: token, write, attempt, body of the pending event, milliseconds to wait, faults, failures, queued_at.
-- Returns 'ok', 'done' or 'lost'.
local outcome = fence(ARGV[1], ARGV[2])
if outcome == 'ok' then
  again(unpack(ARGV, 3))
end
return outcome
