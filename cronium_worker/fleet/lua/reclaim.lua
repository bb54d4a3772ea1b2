-- ARGV: token, '1' when the worker is known to be gone whatever its lease says, then either
--   'again', attempt, body of the pending event, milliseconds to wait, faults, failures, queued_at; or
--   'finish', body of a gap's event ('' for none), status, result JSON, finished_at, seconds to live, body
--   of the terminal event.
-- Returns 'ok', or 'held' when somebody has the job after all.
local token, status, until_ms = unpack(redis.call('HMGET', record, 'token', 'status', 'lease'))
if token ~= ARGV[1] or (status ~= 'preparing' and status ~= 'running') then
  return 'held'
end
if ARGV[2] ~= '1' and tonumber(until_ms or 0) > now_ms() then
  return 'held'
end
redis.call('HINCRBY', record, 'token', 1) -- what the lost worker may still send is refused
if ARGV[3] == 'again' then
  again(unpack(ARGV, 4))
else
  if ARGV[4] ~= '' then
    emit('progress', ARGV[4])
  end
  finish(unpack(ARGV, 5))
end
return 'ok'
